"""Averages gradients in memory that the ranks of one machine share, instead of sending them over TCP as gloo does.

DDP copies the gradients into its buckets. Here the buckets are in shared memory, so nothing else has to be sent. Each
rank averages one shard of a bucket over all ranks and writes the result into every rank's bucket. Each value is
computed once, so all ranks hold the same bits. With a sharded optimizer (`laptime.ranks.sharded_optimizer`), the hook
only notes where the gradients are, and the optimizer averages them.

Ranks wait for each other on Unix sockets. The sockets of a rank that dies are closed, so the others notice immediately.
Shared memory has a name only while torch creates it, and is freed with the last process that uses it. A process that is
killed while torch creates the memory leaves the name behind; the process that started the ranks removes it.
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

# A rank with its own cores polls for the others this long before it sleeps, because waking up takes as long.
_SPIN_S = 100e-6
_CACHE_LINE = 64  # elements; in bytes it is a cache line, so a multiple of one for every type
_GREETING = struct.Struct("16si")  # the token of the listening rank, and the number of the connecting rank
_GREETING_S = 10.0
_OPEN: "weakref.WeakSet[SharedMemory]" = weakref.WeakSet()


@dataclass
class SharedTensor:
    """The tensors with the same name on all ranks, in shared memory and flattened in memory order.

    Attributes:
        local: this rank's tensor, (N,). It keeps the memory alive, so that no other tensor can get its address.
        peers: the other ranks' tensors, each (N,).
    """

    local: Tensor
    peers: list[Tensor]

    def select(self, elements: range) -> "SharedTensor":
        where = slice(elements.start, elements.stop)
        return SharedTensor(self.local[where], [peer[where] for peer in self.peers])


def shard_range(num_elements: int, rank: int, world_size: int) -> range:
    """Return the elements that a rank averages. Shards are whole cache lines, so that no two ranks write to one."""
    shard_size = -(-num_elements // world_size // _CACHE_LINE) * _CACHE_LINE
    start = min(rank * shard_size, num_elements)
    return range(start, min(start + shard_size, num_elements))


class SharedMemory:
    """Averages tensors over the ranks of one machine.

    All ranks create a SharedMemory at the same time, and then average the same tensors in the same order.

    Args:
        rank: this process, which has joined its process group.
        timeout_s: seconds to wait for another rank.

    Attributes:
        collects: whether the hook only notes gradients, for a sharded optimizer to average.
        collected: this rank's shard of each parameter's gradient, from the last backward pass, not averaged.
        is_collected: whether `collected` holds gradients that no optimizer step has used yet.
        last_step_s: seconds that averaging all buckets took in the previous step.

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
        """Return the elements of a tensor that this rank averages."""
        return shard_range(num_elements, self.rank.rank, self.rank.world_size)

    def map_shared(self, tensor: Tensor, name: Hashable) -> SharedTensor:
        """Move a tensor and all its views into shared memory, and map the same tensor of the other ranks.

        Args:
            tensor: a dense tensor on the CPU. Its shape, strides and type must be the same on every rank.
            name: the name of the tensor, the same on every rank.

        Raises:
            torch.distributed.DistNetworkError: another rank has died or did not answer in time.
            RuntimeError: there is not enough shared memory.
        """
        shared = self._shared.get(name)
        if shared is None or shared.local.data_ptr() != tensor.data_ptr():
            shared = self._shared[name] = self._exchange(tensor)
        return shared

    def average(self, tensor: Tensor, name: Hashable) -> None:
        """Average a tensor over the ranks, in place. The first call moves it into shared memory.

        Args:
            tensor, name: the arguments of `map_shared`.
        """
        if not tensor.numel():
            return
        shard = self.map_shared(tensor, name).select(self.shard_range(tensor.numel()))
        self.barrier()  # all ranks have written their tensor
        for peer in shard.peers:
            shard.local.add_(peer)
        shard.local.mul_(1 / self.rank.world_size)
        for peer in shard.peers:
            peer.copy_(shard.local)
        self.barrier()  # all ranks have written their shard

    def collect(self, bucket: dist.GradBucket) -> None:
        """Note where this rank's shards of a bucket's gradients are, in the memory of every rank."""
        buffer, name = bucket.buffer(), bucket.index()
        earlier = self._shared.get(name)
        shared = self.map_shared(buffer, name)
        if shared is not earlier:
            for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
                start = int(gradient.storage_offset() - buffer.storage_offset())
                whole = shared.select(range(start, start + parameter.numel()))
                self.collected[parameter] = whole.select(self.shard_range(parameter.numel()))
        self.is_collected = True

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time in this context as averaging."""
        before = time.perf_counter()
        yield
        self._this_step_s += time.perf_counter() - before

    def next_step(self) -> None:
        """Start to count the seconds of averaging for the next step."""
        self.last_step_s, self._this_step_s = self._this_step_s, 0.0

    def close(self) -> None:
        """Close the sockets, so that ranks that wait for this one get an error."""
        for connection in self._sockets.values():
            connection.close()

    def _exchange(self, tensor: Tensor) -> SharedTensor:
        storage = tensor.untyped_storage()
        try:
            # _share_fd_cpu_ is private; Tensor.share_memory_() calls it (torch 2.14). Not reported upstream.
            descriptor, size = storage._share_fd_cpu_()
        except RuntimeError as error:
            unlink_leftover_memory(os.getpid())
            raise RuntimeError(
                f"strategy.comm_hook=shared_memory: {byte_size(storage.nbytes(), 'MB', 0)} of shared memory for "
                f"gradients can't be allocated ({error}). Enlarge /dev/shm (docker run --shm-size=…) or use "
                "strategy.comm_hook=none."
            ) from error
        for number, connection in self._sockets.items():
            with _naming_rank(number, self.timeout_s):
                socket.send_fds(connection, [struct.pack("q", size)], [descriptor])
        peers = []
        for number, connection in self._sockets.items():
            with _naming_rank(number, self.timeout_s):
                message, descriptors, _, _ = socket.recv_fds(connection, 8, 1)
                if not message:
                    raise ConnectionResetError
            if not descriptors:
                raise RuntimeError(
                    "strategy.comm_hook=shared_memory: the limit on open files is too low to map the gradients of "
                    f"{len(self._sockets)} other ranks. Raise it (ulimit -n), or raise strategy.bucket_cap_mb."
                )
            if message != struct.pack("q", size):
                raise RuntimeError(f"ranks {number} and {self.rank.rank} average tensors of different sizes")
            try:
                mapped = mmap.mmap(descriptors[0], size)
            finally:
                os.close(descriptors[0])
            start = int(tensor.storage_offset()) * tensor.itemsize
            peers.append(torch.frombuffer(mapped, dtype=tensor.dtype, count=tensor.numel(), offset=start))
        return SharedTensor(flat_view(tensor), peers)

    def barrier(self) -> None:
        """Wait until all ranks have called this."""
        for number, connection in self._sockets.items():
            with _naming_rank(number, self.timeout_s):
                connection.send(b".")
        for number, connection in self._sockets.items():
            with _naming_rank(number, self.timeout_s):
                if not self._receive(connection):
                    raise ConnectionResetError

    def _receive(self, connection: socket.socket) -> bytes:
        """Receive the byte that another rank sends at a barrier; b"": it has closed its socket."""
        if self._spin_s:
            until = time.perf_counter() + self._spin_s
            while time.perf_counter() < until:
                with contextlib.suppress(BlockingIOError):
                    return connection.recv(1, socket.MSG_DONTWAIT)
        return connection.recv(1)


def flat_view(tensor: Tensor) -> Tensor:
    """Return a view of a dense tensor's elements in memory order, (N,)."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def average_bucket(state: SharedMemory, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The communication hook. DDP calls it when all gradients of a bucket have been computed."""
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
    """Close the sockets of all SharedMemory objects of this process."""
    for shared in list(_OPEN):
        shared.close()


def unlink_leftover_memory(pid: int) -> None:
    """Remove the shared-memory files that a killed process of this user left in /dev/shm.

    torch unlinks such a file as soon as it has mapped the memory. The file stays if the process is killed in between.
    """
    with contextlib.suppress(OSError):
        for path in Path("/dev/shm").glob(f"torch_{pid}_*"):
            if path.is_file() and path.stat().st_uid == os.getuid():
                path.unlink()


def _allow_many_descriptors() -> None:
    """Raise the limit on open files to its maximum: each bucket and weight of every other rank needs a descriptor."""
    import resource  # missing on Windows

    _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))


def _connect_all(rank: Rank, timeout_s: float) -> Iterator[tuple[int, socket.socket]]:
    """Connect to all other ranks over Unix sockets in Linux's abstract namespace, which leave no file behind.

    Yields:
        The number of each other rank, and the socket to it.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(timeout_s)
        listener.bind(f"\0laptime-{os.urandom(16).hex()}")
        listener.listen(socket.SOMAXCONN)
        token = os.urandom(16)  # other users can find the socket's name, but not the token
        peers = rank.gather((_machine_id(), listener.getsockname(), token))
        elsewhere = [number for number, (machine, _, _) in enumerate(peers) if machine != peers[0][0]]
        if elsewhere:
            raise UserError(
                f"strategy.comm_hook=shared_memory: rank {elsewhere[0]} is not on the same machine as rank 0, or not "
                "in the same container. Use strategy.comm_hook=none."
            )
        sockets: dict[int, socket.socket] = {}
        for number in range(rank.rank):
            _, name, peer_token = peers[number]
            with _naming_rank(number, timeout_s):
                sockets[number] = socket.socket(socket.AF_UNIX)
                _set_timeout(sockets[number], timeout_s)
                sockets[number].connect(name)
                sockets[number].sendall(_GREETING.pack(peer_token, rank.rank))
        for number in range(rank.rank + 1, rank.world_size):
            with _naming_rank(number, timeout_s):
                peer, connection = _accept_rank(listener, token)
            _set_timeout(connection, timeout_s)
            sockets[peer] = connection
    yield from sorted(sockets.items())


def _set_timeout(connection: socket.socket, timeout_s: float) -> None:
    """Limit how long each call on a socket blocks, with the options SO_RCVTIMEO and SO_SNDTIMEO.

    Python's `settimeout` makes the socket non-blocking. Then `connect` fails immediately if the other rank's listen
    backlog is full, instead of waiting for a free place.
    """
    connection.setblocking(True)
    seconds, fraction = divmod(timeout_s, 1)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(seconds), int(fraction * 1e6)))


def _accept_rank(listener: socket.socket, token: bytes) -> tuple[int, socket.socket]:
    """Return the number of the next rank that connects, and its socket. Refuse processes without the token."""
    while True:
        connection, _ = listener.accept()
        connection.settimeout(min(_GREETING_S, listener.gettimeout() or _GREETING_S))
        with contextlib.suppress(OSError):
            greeting = connection.recv(_GREETING.size, socket.MSG_WAITALL)
            if len(greeting) == _GREETING.size:
                received_token, number = _GREETING.unpack(greeting)
                if received_token == token:
                    return number, connection
        connection.close()


def _machine_id() -> str:
    """Return a text that is equal for processes that can share memory and connect to each other's sockets."""
    assert sys.platform == "linux"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/net').readlink()}"


@contextlib.contextmanager
def _naming_rank(number: int, timeout_s: float) -> Iterator[None]:
    """Name the rank in errors about the connection to it."""
    try:
        yield
    except (BlockingIOError, TimeoutError) as error:
        raise dist.DistNetworkError(
            f"rank {number} did not join the averaging of gradients within strategy.timeout_s={timeout_s:g}"
        ) from error
    except ConnectionError as error:
        raise dist.DistNetworkError(f"rank {number} closed its connection while gradients were averaged") from error
