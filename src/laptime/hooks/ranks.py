"""Exchanges values between the timers of several ranks, through the key-value store of the training's process group.

Collective operations are not used. They would interleave with the training's own, and would hang if one rank has no
timer.
"""

import os
import pickle
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from laptime.hooks.guard import TimingError
from laptime.ranks.rank import Rank

# Ranks end a lap together, but rank 0 may save a checkpoint first.
_TIMEOUT_S = 60.0
_num_groups = 0


class MissingRanks(TimingError):
    """Some ranks sent no value."""


@dataclass(frozen=True)
class _Message:
    process: tuple[int, int]  # node rank and process id
    value: Any


class RankGroup:
    """The ranks of one training.

    Args:
        rank: this process.

    Raises:
        MissingRanks: fewer processes have joined than the training requested, because a launcher did not start them.
    """

    def __init__(self, rank: Rank) -> None:
        global _num_groups
        _num_groups += 1  # all ranks time the same trainings in the same order
        self.rank = rank
        self._prefix = f"laptime/{_num_groups}"
        self._store: dist.Store | None = None
        if rank.world_size > 1:
            joined = dist.get_world_size() if rank.is_distributed else 1
            if joined != rank.world_size:
                raise MissingRanks(
                    f"{rank.world_size} ranks were requested, but {joined} joined. Start the training in a new "
                    "process, because Lightning's launcher leaves variables such as LOCAL_RANK behind"
                )
            self._store = dist.distributed_c10d._get_default_store()

    def gather(self, topic: str, value: Any) -> list[Any]:
        """Send a value to rank 0.

        Args:
            topic: a name that is used once.
            value: a value that can be pickled.

        Returns:
            On rank 0 the values of all ranks in rank order; on the other ranks only their own.

        Raises:
            MissingRanks: another rank sends nothing for a minute, or two ranks share a process; only on rank 0.
        """
        if self._store is None:
            return [value]
        message = _Message((self.rank.node, os.getpid()), value)
        if not self.rank.is_first:
            self._store.set(self._key(topic, self.rank.rank), pickle.dumps(message))  # type: ignore[arg-type]
            return [value]
        keys = [self._key(topic, rank) for rank in range(1, self.rank.world_size)]
        self._wait_for(keys)
        messages = [message, *(pickle.loads(self._store.get(key)) for key in keys)]
        for key in keys:
            self._store.delete_key(key)
        num_processes = len({message.process for message in messages})
        if num_processes < len(messages):
            raise MissingRanks(
                f"{len(messages)} ranks run in {num_processes} processes. Start each rank in its own process"
            )
        return [message.value for message in messages]

    def _wait_for(self, keys: list[str]) -> None:
        """Wait until all keys are set."""
        assert self._store is not None
        until = time.monotonic() + _TIMEOUT_S
        while True:
            try:
                self._store.wait(keys, timedelta(seconds=min(1.0, _TIMEOUT_S)))
                return
            except Exception as error:  # each type of store raises its own
                failed_ranks = [
                    rank for rank in range(1, self.rank.world_size) if self._store.check([self._key("failed", rank)])
                ]
                if failed_ranks:
                    raise MissingRanks(f"the timer of rank {failed_ranks[0]} has failed") from error
                if time.monotonic() > until:
                    raise MissingRanks("not every rank has a timer. Add it on every rank") from error

    def announce_failure(self) -> None:
        """Tell rank 0 that the timer of this rank has failed."""
        if self._store is not None and not self.rank.is_first:
            self._store.set(self._key("failed", self.rank.rank), "failed")

    def barrier(self, topic: str) -> None:
        """Wait until all ranks have called this, for at most a minute."""
        if self._store is None:
            return
        self.gather(f"{topic} ready", None)
        if self.rank.is_first:
            self._store.set(self._key(topic, 0), "go")
        else:
            self._store.wait([self._key(topic, 0)], timedelta(seconds=_TIMEOUT_S))

    def _key(self, topic: str, rank: int) -> str:
        return f"{self._prefix}/{topic}/{rank}"


def rank_of_process_group() -> Rank:
    """Return this process as a rank of torch's default process group, or as a single rank without one."""
    threads = torch.get_num_threads()
    if not (dist.is_available() and dist.is_initialized()):
        return Rank(threads=threads)
    world_size = dist.get_world_size()
    on_node = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    return Rank(
        rank=dist.get_rank(),
        local_rank=int(os.environ.get("LOCAL_RANK", dist.get_rank())),
        world_size=world_size,
        threads=threads,
        node=int(os.environ.get("GROUP_RANK", dist.get_rank() // on_node)),
        num_nodes=-(-world_size // on_node),
    )
