"""What the ranks of somebody else's training tell each other, through the store of their process group.

A store and no collectives: those would come between the training's own, and a rank without a timer would let the
others wait for ever.
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

# Ranks end a lap together; the first one may save a checkpoint meanwhile.
_TIMEOUT_S = 60.0
_num_groups = 0


class MissingRanks(TimingError):
    """Some ranks said nothing."""


@dataclass(frozen=True)
class _Message:
    process: tuple[int, int]  # node and id
    value: Any


class RankGroup:
    """The ranks of one training.

    Args:
        rank: this process.

    Raises:
        MissingRanks: there are not as many processes as the training says: a launcher did not start them.
    """

    def __init__(self, rank: Rank) -> None:
        global _num_groups
        _num_groups += 1  # ranks time the same trainings in the same order
        self.rank = rank
        self._prefix = f"laptime/{_num_groups}"
        self._store: dist.Store | None = None
        if rank.world_size > 1:
            joined = dist.get_world_size() if rank.is_distributed else 1
            if joined != rank.world_size:
                raise MissingRanks(
                    f"{rank.world_size} ranks were asked for and {joined} joined. Start them anew: Lightning's own "
                    "launcher leaves variables such as LOCAL_RANK behind, which spoil later runs of the same process"
                )
            self._store = dist.distributed_c10d._get_default_store()

    def gather(self, topic: str, value: Any) -> list[Any]:
        """Tell the first rank a plain value.

        Args:
            topic: what it is about, each time another.
            value: can be pickled.

        Returns:
            On the first rank the values of all ranks, in their order; on the others their own.

        Raises:
            MissingRanks: on the first rank: another one said nothing for a minute, or they are no processes of their
                own.
        """
        if self._store is None:
            return [value]
        said = _Message((self.rank.node, os.getpid()), value)
        if not self.rank.is_first:
            self._store.set(self._key(topic, self.rank.rank), pickle.dumps(said))  # type: ignore[arg-type]
            return [value]
        keys = [self._key(topic, rank) for rank in range(1, self.rank.world_size)]
        self._wait_for(keys)
        messages = [said, *(pickle.loads(self._store.get(key)) for key in keys)]
        for key in keys:
            self._store.delete_key(key)
        num_processes = len({each.process for each in messages})
        if num_processes < len(messages):
            raise MissingRanks(f"{len(messages)} ranks run in {num_processes} processes")
        return [each.value for each in messages]

    def _wait_for(self, keys: list[str]) -> None:
        """Wait until all keys are there."""
        assert self._store is not None
        until = time.monotonic() + _TIMEOUT_S
        while True:
            try:
                self._store.wait(keys, timedelta(seconds=min(1.0, _TIMEOUT_S)))
                return
            except Exception as error:  # each kind of store has its own
                gone = [rank for rank in range(1, self.rank.world_size) if self._store.check([self._key("gone", rank)])]
                if gone:
                    raise MissingRanks(f"the timer of rank {gone[0]} has failed") from error
                if time.monotonic() > until:
                    raise MissingRanks("not every rank has a timer. Give it to each of them") from error

    def announce_exit(self) -> None:
        """Tell the first rank that this one says nothing any more."""
        if self._store is not None and not self.rank.is_first:
            self._store.set(self._key("gone", self.rank.rank), "gone")

    def barrier(self, topic: str) -> None:
        """Wait for each other, so that all do the next thing at the same time; not for longer than a minute."""
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
    """This process in torch's process group; alone where there is none."""
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
