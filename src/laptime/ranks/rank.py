"""A rank: one of world_size training processes, and how it exchanges plain values with the others."""

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
        rank: its index among all ranks, from 0 to world_size - 1.
        local_rank: its index among the ranks of this machine, or of its torchrun.
        core_slot: its index among the ranks that share its cores.
        world_size: number of ranks.
        threads: number of CPU threads it computes with.
        cores: CPU cores it is pinned to; None: the system chooses.
        oversubscribed: whether the ranks of this machine have more threads than cores.
        attempt: number of earlier starts of this run's ranks.
        node: index of this machine among those of the run.
        num_nodes: number of machines.
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
        """Whether there is a process group. A single rank has one if the configuration asks for DDP."""
        return dist.is_available() and dist.is_initialized()

    def apply_affinity(self) -> None:
        """Pin this process to its cores and set its threads. Call it before torch starts its first thread."""
        if self.cores is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.cores)
        torch.set_num_threads(self.threads)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.is_distributed:
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """Collect plain values from all ranks, ordered by rank. Every rank gets the same list."""
        if not self.is_distributed:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Sum element by element over all ranks, in float64. Every rank gets the same bits."""
        return [sum(column) for column in zip(*self.gather([float(value) for value in values]), strict=True)]

    def any_rank(self, value: bool) -> bool:
        """Return whether the value is true on any rank."""
        return any(self.gather(value))


def assert_world(rank: Rank, world_size: int) -> list[int]:
    """Check that there are world_size ranks, each in its own process. Otherwise the measured scaling would be false.

    Returns:
        The process ids of all ranks, ordered by rank.

    Raises:
        RuntimeError: there are fewer ranks or processes.
    """
    joined = dist.get_world_size() if rank.is_distributed else 1
    pids = rank.gather((rank.node, os.getpid()))
    if joined != world_size or len(set(pids)) != world_size:
        raise RuntimeError(
            f"strategy.world_size={world_size}: {joined} ranks joined, in {len(set(pids))} different processes"
        )
    return [pid for _, pid in pids]
