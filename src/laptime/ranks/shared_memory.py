"""Averaging gradients through memory that the ranks of one machine share, where gloo sends them over loopback TCP.

DDP's own buckets are moved into shared memory, so that copying gradients into them, which DDP does anyway, is all the
sending there is. Then each rank averages its share of the bucket over all ranks and writes it into every rank's bucket:
every value is computed once, so all ranks hold the same bits. Where each rank also updates the weights of its share
(`laptime.ranks.sharded_optimizer`), the buckets are only collected here.

Ranks wait for each other on Unix sockets: a rank that dies closes its own, and is missed at once. Shared memory has no
name but while torch makes it, so it ends with the last process that uses it; whoever starts ranks removes the name that
one left which was killed in that moment.
"""

import contextlib
import mmap
import os
import socket
import struct
import sys
import time
import weakref
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from laptime.errors import UserError
from laptime.ranks.rank import Rank
from laptime.text import byte_size

# A rank with cores of its own looks this long whether the others are there before it sleeps: to be woken takes as long.
_SPIN_S = 100e-6
_CACHE_LINE = 64  # elements: a cache line's bytes, so a whole one of any type
_GREETING = struct.Struct("16si")  # the token of the rank that is greeted, and who greets
_GREETING_S = 10.0
_OPEN: "weakref.WeakSet[SharedMemory]" = weakref.WeakSet()


@dataclass
class SharedTensor:
    """A tensor that all ranks have, in the order of its memory: this rank's, and the others'.

    `own` keeps its memory alive, so no other tensor can come to lie at its address.
    """

    local: Tensor
    peers: list[Tensor]

    def select(self, elements: range) -> "SharedTensor":
        where = slice(elements.start, elements.stop)
        return SharedTensor(self.local[where], [peer[where] for peer in self.peers])


def shard_range(num_elements: int, rank: int, world_size: int) -> range:
    """Which elements of so many are a rank's to average: whole cache lines, so that no two ranks write one."""
    share = -(-num_elements // world_size // _CACHE_LINE) * _CACHE_LINE
    start = min(rank * share, num_elements)
    return range(start, min(start + share, num_elements))


class SharedMemory:
    """Averages tensors over the ranks of one machine.

    All ranks make one at the same time, and then average the same tensors in the same order.

    Args:
        rank: this process, in its process group.
        timeout_s: how long to wait for another rank before giving up.

    Attributes:
        collects: whether the hook leaves averaging to a sharded optimizer.
        collected: by parameter, this rank's share of the gradients that the hook found in the last backward pass, not
            averaged.
        is_collected: whether that was after the last step.
        last_step_s: seconds that averaging took in the step before, all buckets together.

    Raises:
        UserError: the ranks are not on one machine.
    """

    def __init__(self, rank: Rank, timeout_s: float) -> None:
        _allow_many_descriptors()
        self.rank = rank
        self.timeout_s = timeout_s
        self.collects = self.is_collected = False
        self.collected: dict[Tensor, SharedTensor] = {}
        self._shared: dict[Hashable, SharedTensor] = {}
        self._sockets = dict(_connect_all(rank, timeout_s))
        self._spin_s = 0.0 if rank.oversubscribed or rank.cores is None else _SPIN_S
        self.last_step_s = self._this_step_s = 0.0
        _OPEN.add(self)

    def shard_range(self, num_elements: int) -> range:
        """Which elements of so many are this rank's to average."""
        return shard_range(num_elements, self.rank.rank, self.rank.world_size)

    def map_shared(self, tensor: Tensor, name: Hashable) -> SharedTensor:
        """Move a tensor into shared memory, all views of it too, and see the same of the other ranks.

        Args:
            tensor: dense, on the CPU, of the same shape, strides and type on every rank.
            name: of the tensor, the same on every rank.

        Raises:
            torch.distributed.DistNetworkError: another rank is gone or did not come in time.
            RuntimeError: there is not enough shared memory.
        """
        shared = self._shared.get(name)
        if shared is None or shared.local.data_ptr() != tensor.data_ptr():
            shared = self._shared[name] = self._exchange(tensor)
        return shared

    def average(self, tensor: Tensor, name: Hashable) -> None:
        """Replace a tensor by its mean over the ranks, in place; it lies in shared memory from the first time on.

        Args:
            tensor, name: as for `share`.
        """
        if not tensor.numel():
            return
        mine = self.map_shared(tensor, name).select(self.shard_range(tensor.numel()))
        self.barrier()  # everybody's tensor is complete
        for other in mine.peers:
            mine.local.add_(other)
        mine.local.mul_(1 / self.rank.world_size)
        for other in mine.peers:
            other.copy_(mine.local)
        self.barrier()  # every share has been written

    def collect(self, bucket: dist.GradBucket) -> None:
        """Note where this rank's share of a bucket's gradients is, on every rank."""
        buffer, name = bucket.buffer(), bucket.index()
        known = self._shared.get(name)
        shared = self.map_shared(buffer, name)
        if shared is not known:
            for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
                start = int(gradient.storage_offset() - buffer.storage_offset())
                whole = shared.select(range(start, start + parameter.numel()))
                self.collected[parameter] = whole.select(self.shard_range(parameter.numel()))
        self.is_collected = True

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """What is done within is averaging."""
        before = time.perf_counter()
        yield
        self._this_step_s += time.perf_counter() - before

    def next_step(self) -> None:
        """The seconds of averaging are those of another step from now on."""
        self.last_step_s, self._this_step_s = self._this_step_s, 0.0

    def close(self) -> None:
        """Leave: whoever waits for this rank learns that it won't come."""
        for each in self._sockets.values():
            each.close()

    def _exchange(self, tensor: Tensor) -> SharedTensor:
        storage = tensor.untyped_storage()
        try:
            descriptor, size = storage._share_fd_cpu_()  # what Tensor.share_memory_() does
        except RuntimeError as error:
            unlink_leftover_memory(os.getpid())
            raise RuntimeError(
                f"strategy.comm_hook=shared_memory: no shared memory for {byte_size(storage.nbytes(), 'MB', 0)} of "
                f"gradients ({error}). Enlarge /dev/shm (docker run --shm-size=…) or use strategy.comm_hook=none."
            ) from error
        for number, each in self._sockets.items():
            with _naming_rank(number, self.timeout_s):
                socket.send_fds(each, [struct.pack("q", size)], [descriptor])
        others = []
        for number, each in self._sockets.items():
            with _naming_rank(number, self.timeout_s):
                message, descriptors, _, _ = socket.recv_fds(each, 8, 1)
                if not message:
                    raise ConnectionResetError
            if not descriptors:
                raise RuntimeError(
                    "strategy.comm_hook=shared_memory: this process may open too few files to map the gradients of "
                    f"{len(self._sockets)} other ranks. Raise the limit (ulimit -n) or strategy.bucket_cap_mb."
                )
            if message != struct.pack("q", size):
                raise RuntimeError(f"rank {number} averages another tensor than rank {self.rank.rank}")
            try:
                mapped = mmap.mmap(descriptors[0], size)
            finally:
                os.close(descriptors[0])
            start = int(tensor.storage_offset()) * tensor.itemsize
            others.append(torch.frombuffer(mapped, dtype=tensor.dtype, count=tensor.numel(), offset=start))
        return SharedTensor(flat_view(tensor), others)

    def barrier(self) -> None:
        """Return when every rank has come here."""
        for number, each in self._sockets.items():
            with _naming_rank(number, self.timeout_s):
                each.send(b".")
        for number, each in self._sockets.items():
            with _naming_rank(number, self.timeout_s):
                if not self._received(each):
                    raise ConnectionResetError

    def _received(self, other: socket.socket) -> bytes:
        """The byte that another rank sends when it has come; b"": it is gone."""
        if self._spin_s:
            until = time.perf_counter() + self._spin_s
            while time.perf_counter() < until:
                with contextlib.suppress(BlockingIOError):
                    return other.recv(1, socket.MSG_DONTWAIT)
        return other.recv(1)


def flat_view(tensor: Tensor) -> Tensor:
    """The elements of a dense tensor in the order in which they lie, (N,); the same memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def average_bucket(state: SharedMemory, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The hook: DDP calls it when all gradients of a bucket are there."""
    if bucket.index() == 0:
        state.next_step()
    with state.timed():
        if state.collects:
            state.collect(bucket)
        else:
            state.average(bucket.buffer(), bucket.index())
    averaged: torch.futures.Future[Tensor] = torch.futures.Future()
    averaged.set_result(bucket.buffer())
    return averaged


def close_all() -> None:
    """Leave wherever this rank takes part."""
    for each in list(_OPEN):
        each.close()


def unlink_leftover_memory(pid: int) -> None:
    """Remove the names of shared memory that a process of this user was making when it ended: torch unlinks one as soon
    as its memory is allocated."""
    with contextlib.suppress(OSError):
        for path in Path("/dev/shm").glob(f"torch_{pid}_*"):
            if path.is_file() and path.stat().st_uid == os.getuid():
                path.unlink()


def _allow_many_descriptors() -> None:
    """As many as the system lets this process have: every bucket and weight of every other rank takes one."""
    import resource  # which Windows lacks

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _connect_all(rank: Rank, timeout_s: float) -> Iterator[tuple[int, socket.socket]]:
    """A socket to every other rank.

    The names are Linux's abstract ones, which leave no file behind.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(timeout_s)
        listener.bind(f"\0laptime-{os.urandom(16).hex()}")
        listener.listen(socket.SOMAXCONN)
        token = os.urandom(16)  # others can find the socket's name, but not this
        there = rank.gather((_machine_id(), listener.getsockname(), token))
        strangers = [number for number, (machine, _, _) in enumerate(there) if machine != there[0][0]]
        if strangers:
            raise UserError(
                f"strategy.comm_hook=shared_memory: rank {strangers[0]} is on another machine than rank 0, or in "
                "another container. Use strategy.comm_hook=none."
            )
        met: dict[int, socket.socket] = {}
        for number in range(rank.rank):
            _, name, theirs = there[number]
            with _naming_rank(number, timeout_s):
                met[number] = socket.socket(socket.AF_UNIX)
                _set_timeout(met[number], timeout_s)
                met[number].connect(name)
                met[number].sendall(_GREETING.pack(theirs, rank.rank))
        for number in range(rank.rank + 1, rank.world_size):
            with _naming_rank(number, timeout_s):
                first, other = _accept_rank(listener, token)
            _set_timeout(other, timeout_s)
            met[first] = other
    yield from sorted(met.items())


def _set_timeout(connection: socket.socket, timeout_s: float) -> None:
    """Make every call on a socket wait this many seconds at most; the socket is a blocking one from then on.

    Python's own `settimeout` makes the socket non-blocking. Then `connect` fails at once when the other rank's queue of
    connections is full, instead of waiting for room.
    """
    connection.setblocking(True)
    seconds, fraction = divmod(timeout_s, 1)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), int(fraction * 1e6)))


def _accept_rank(listener: socket.socket, token: bytes) -> tuple[int, socket.socket]:
    """The next rank that connects, and its socket; whoever doesn't know the token is none."""
    while True:
        other, _ = listener.accept()
        other.settimeout(min(_GREETING_S, listener.gettimeout() or _GREETING_S))
        with contextlib.suppress(OSError):
            said = other.recv(_GREETING.size, socket.MSG_WAITALL)
            if len(said) == _GREETING.size:
                told, number = _GREETING.unpack(said)
                if told == token:
                    return number, other
        other.close()


def _machine_id() -> str:
    """The same for processes that can share memory and reach each other's sockets."""
    assert sys.platform == "linux"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/net').readlink()}"


@contextlib.contextmanager
def _naming_rank(number: int, timeout_s: float) -> Iterator[None]:
    """Say of which rank nothing was heard."""
    try:
        yield
    except (BlockingIOError, TimeoutError) as error:
        raise dist.DistNetworkError(
            f"rank {number} did not come to average gradients within strategy.timeout_s={timeout_s:g}"
        ) from error
    except ConnectionError as error:
        raise dist.DistNetworkError(f"rank {number} is gone: its gradients are missed") from error
