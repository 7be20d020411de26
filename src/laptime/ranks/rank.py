"""A rank: one training process among world_size, and what it says to the others."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Rank:
    """This training process.

    Attributes:
        rank: from 0 to world_size - 1.
        local_rank: the same among the ranks of this machine, or of its torchrun.
        core_slot: the same among the ranks that share this one's cores.
        world_size: number of ranks.
        threads: CPU threads it computes with.
        cores: CPU cores it is pinned to; None: wherever the system puts it.
        oversubscribed: whether the ranks have more threads than there are cores.
        attempt: how often the ranks of this run were started before.
        node: number of this machine among those of the run.
        num_nodes: how many machines.
    """

    rank: int = 0
    local_rank: int = 0
    core_slot: int = 0
    world_size: int = 1
    threads: int = 1
    cores: tuple[int, ...] | None = None
    oversubscribed: bool = False
    attempt: int = 0
    node: int = 0
    num_nodes: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether there is a process group: also with one rank, where DDP was asked for."""
        return dist.is_available() and dist.is_initialized()

    def apply_affinity(self) -> None:
        """Take the cores and threads that were assigned; before torch starts its first thread."""
        if self.cores is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.cores)
        torch.set_num_threads(self.threads)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.is_distributed:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """The plain values of all ranks, in their order, on every rank."""
        if not self.is_distributed:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Element by element over all ranks, in float64, in the order of the ranks: the same bits on every rank."""
        return [sum(column) for column in zip(*self.gather([float(value) for value in values]), strict=True)]

    def any_rank(self, value: bool) -> bool:
        """Whether it is so on any rank."""
        return any(self.gather(value))


def assert_world(rank: Rank, world_size: int) -> list[int]:
    """Make sure that there are as many ranks as were asked for, each a process of its own.

    Returns:
        Their process ids, by rank, each unique on its machine.

    Raises:
        RuntimeError: a sweep that trains fewer processes than it says would report false scaling.
    """
    real = dist.get_world_size() if rank.is_distributed else 1
    pids = rank.gather((rank.node, os.getpid()))
    if real != world_size or len(set(pids)) != world_size:
        raise RuntimeError(f"{world_size} ranks were asked for, {real} joined in {len(set(pids))} processes")
    return [pid for _, pid in pids]
