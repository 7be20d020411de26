"""Averaging gradients through memory that the ranks of one machine share, where gloo sends them over loopback TCP.

DDP's own buckets are moved into shared memory, so that copying gradients into them, which DDP does anyway, is all the
sending there is. Then each rank averages one slice of the bucket over all ranks and writes it into every rank's bucket:
every value is computed once, so all ranks hold the same bits.

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
from laptime.ranks import Rank

# A rank with cores of its own looks this long whether the others are there before it sleeps: to be woken takes as long.
_AWAKE_S = 100e-6
_GREETING = struct.Struct("16si")  # the token of the rank that is greeted, and who greets
_GREETING_S = 10.0
_OPEN: "weakref.WeakSet[SharedMemory]" = weakref.WeakSet()


@dataclass
class _Slices:
    """One rank's share of a tensor that all ranks have: in its own memory, and the same place in the others'.

    `own` keeps that memory alive, so no other tensor can come to lie at `address`.
    """

    address: int
    own: Tensor
    others: list[Tensor]


class SharedMemory:
    """Averages tensors over the ranks of one machine.

    All ranks make one at the same time, and then average the same tensors in the same order.

    Args:
        rank: this process, in its process group.
        timeout_s: how long to wait for another rank before giving up.

    Attributes:
        took_s: seconds that averaging took in the step before, all buckets together.

    Raises:
        UserError: the ranks are not on one machine.
    """

    def __init__(self, rank: Rank, timeout_s: float) -> None:
        _allow_many_descriptors()
        self.rank = rank
        self.timeout_s = timeout_s
        self._slices: dict[Hashable, _Slices] = {}
        self._sockets = dict(_connected(rank, timeout_s))
        self._awake_s = 0.0 if rank.oversubscribed or rank.cores is None else _AWAKE_S
        self.took_s = self._takes_s = 0.0
        _OPEN.add(self)

    def average(self, tensor: Tensor, name: Hashable) -> None:
        """Replace a tensor by its mean over the ranks, in place; it lies in shared memory from the first time on.

        Args:
            tensor: contiguous, on the CPU, of the same shape and type on every rank.
            name: of the tensor, the same on every rank.

        Raises:
            torch.distributed.DistNetworkError: another rank is gone or did not come in time.
            RuntimeError: there is not enough shared memory.
        """
        if not tensor.numel():
            return
        slices = self._slices.get(name)
        if slices is None or slices.address != tensor.data_ptr():
            slices = self._slices[name] = self._share(tensor)
        self._meet()  # everybody's tensor is complete
        for other in slices.others:
            slices.own.add_(other)
        slices.own.mul_(1 / self.rank.world_size)
        for other in slices.others:
            other.copy_(slices.own)
        self._meet()  # every slice has been written

    def close(self) -> None:
        """Leave: whoever waits for this rank learns that it won't come."""
        for each in self._sockets.values():
            each.close()

    def _share(self, tensor: Tensor) -> _Slices:
        """Move a tensor into shared memory, all views of it too, and map the others' into this process."""
        storage = tensor.untyped_storage()
        try:
            descriptor, size = storage._share_fd_cpu_()  # what Tensor.share_memory_() does
        except RuntimeError as error:
            remove_left_behind(os.getpid())
            raise RuntimeError(
                f"strategy.comm_hook=shared_memory: no shared memory for {storage.nbytes() / 1e6:.0f} MB of gradients "
                f"({error}). Enlarge /dev/shm (docker run --shm-size=…) or use strategy.comm_hook=none."
            ) from error
        share = -(-tensor.numel() // self.rank.world_size)
        mine = slice(self.rank.rank * share, (self.rank.rank + 1) * share)
        for number, each in self._sockets.items():
            with _missing(number, self.timeout_s):
                socket.send_fds(each, [struct.pack("q", size)], [descriptor])
        others = []
        for number, each in self._sockets.items():
            with _missing(number, self.timeout_s):
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
            others.append(torch.frombuffer(mapped, dtype=tensor.dtype, count=tensor.numel(), offset=start)[mine])
        return _Slices(tensor.data_ptr(), tensor.view(-1)[mine], others)

    def _meet(self) -> None:
        """Return when every rank has come here."""
        for number, each in self._sockets.items():
            with _missing(number, self.timeout_s):
                each.send(b".")
        for number, each in self._sockets.items():
            with _missing(number, self.timeout_s):
                if not self._received(each):
                    raise ConnectionResetError

    def _received(self, other: socket.socket) -> bytes:
        """The byte that another rank sends when it has come; b"": it is gone."""
        if self._awake_s:
            until = time.perf_counter() + self._awake_s
            while time.perf_counter() < until:
                with contextlib.suppress(BlockingIOError):
                    return other.recv(1, socket.MSG_DONTWAIT)
        return other.recv(1)


def average_bucket(state: SharedMemory, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The hook: DDP calls it when all gradients of a bucket are there."""
    if bucket.index() == 0:
        state.took_s, state._takes_s = state._takes_s, 0.0
    before = time.perf_counter()
    state.average(bucket.buffer(), bucket.index())
    state._takes_s += time.perf_counter() - before
    averaged: torch.futures.Future[Tensor] = torch.futures.Future()
    averaged.set_result(bucket.buffer())
    return averaged


def close_all() -> None:
    """Leave wherever this rank takes part."""
    for each in list(_OPEN):
        each.close()


def remove_left_behind(pid: int) -> None:
    """Remove the names of shared memory that a process of this user was making when it ended: torch unlinks one as soon
    as its memory is allocated."""
    with contextlib.suppress(OSError):
        for path in Path("/dev/shm").glob(f"torch_{pid}_*"):
            if path.is_file() and path.stat().st_uid == os.getuid():
                path.unlink()


def _allow_many_descriptors() -> None:
    """As many as the system lets this process have: every bucket of every other rank takes one."""
    import resource  # which Windows lacks

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _connected(rank: Rank, timeout_s: float) -> Iterator[tuple[int, socket.socket]]:
    """A socket to every other rank.

    The names are Linux's abstract ones, which leave no file behind.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(timeout_s)
        listener.bind(f"\0laptime-{os.urandom(16).hex()}")
        listener.listen(rank.world_size)
        token = os.urandom(16)  # others can find the socket's name, but not this
        there = rank.gather((_machine(), listener.getsockname(), token))
        strangers = [number for number, (machine, _, _) in enumerate(there) if machine != there[0][0]]
        if strangers:
            raise UserError(
                f"strategy.comm_hook=shared_memory: rank {strangers[0]} is on another machine than rank 0, or in "
                "another container. Use strategy.comm_hook=none."
            )
        met: dict[int, socket.socket] = {}
        for number in range(rank.rank):
            _, name, theirs = there[number]
            with _missing(number, timeout_s):
                met[number] = socket.socket(socket.AF_UNIX)
                met[number].settimeout(timeout_s)
                met[number].connect(name)
                met[number].sendall(_GREETING.pack(theirs, rank.rank))
        for number in range(rank.rank + 1, rank.world_size):
            with _missing(number, timeout_s):
                first, other = _accepted(listener, token)
            met[first] = other
    for number, other in sorted(met.items()):
        other.setblocking(True)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            seconds, fraction = divmod(timeout_s, 1)
            other.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), int(fraction * 1e6)))
        yield number, other


def _accepted(listener: socket.socket, token: bytes) -> tuple[int, socket.socket]:
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


def _machine() -> str:
    """The same for processes that can share memory and reach each other's sockets."""
    assert sys.platform == "linux"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/net').readlink()}"


@contextlib.contextmanager
def _missing(number: int, timeout_s: float) -> Iterator[None]:
    """Say of which rank nothing was heard."""
    try:
        yield
    except (BlockingIOError, TimeoutError) as error:
        raise dist.DistNetworkError(
            f"rank {number} did not come to average gradients within strategy.timeout_s={timeout_s:g}"
        ) from error
    except ConnectionError as error:
        raise dist.DistNetworkError(f"rank {number} is gone: its gradients are missed") from error
