"""The loader of Laptime's own training: starts the clock of an epoch and times the waiting for data."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from laptime.lap.clock import LapClock
from laptime.ranks.rank import Rank

Batch = tuple[Tensor, Tensor]


class Pipeline(Protocol):
    """Makes the training batches of one epoch.

    `step_groups()` yields lists of (images, labels) on the training device: one entry per optimizer step, images
    float32 (B, C, H, W), labels int64 (B,). `batches()` yields the same batches one by one, for the bare loop.
    """

    batch_size: int

    def step_groups(self) -> Iterator[list[Batch]]: ...

    def batches(self) -> Iterator[Batch]: ...

    def __len__(self) -> int:
        """The number of step groups in an epoch."""
        ...


class EpochSampler(Protocol):
    """Decides which samples an epoch uses, and in which order.

    Attributes:
        epoch: the current epoch, from 0.
        lap_word: what an epoch is: `epoch`, or `lap` if it is a number of steps.
    """

    epoch: int
    lap_word: str

    def set_epoch(self, epoch: int) -> None: ...

    def __len__(self) -> int:
        """The number of this rank's samples in an epoch."""
        ...


class TimedLoader:
    """A pipeline with a clock, for Lightning to iterate over.

    The clock starts when the first batch of an epoch is requested, not when the iterator is made: Lightning makes the
    first epoch's iterator early.

    Attributes:
        sampler: decides the order of samples; Lightning calls its `set_epoch`.
        clock: the clock of this epoch; all ranks start it together.
    """

    def __init__(self, pipeline: Pipeline, order: EpochSampler, clock: LapClock, rank: Rank) -> None:
        self.pipeline = pipeline
        self.sampler = order
        self.clock = clock
        self.rank = rank

    def __len__(self) -> int:
        return len(self.pipeline)

    def __iter__(self) -> Iterator[list[Batch]]:
        clock = self.clock
        clock.start(self.rank.barrier)  # the ranks start together, because the slowest rank's time is the run's
        clock.begin_wait()
        for step_group in self.pipeline.step_groups():
            clock.end_wait()
            yield step_group
            clock.begin_wait()
        clock.end_wait()


def batch_sizes(num_samples: int, batch_size: int) -> list[int]:
    """The number of samples of each optimizer step of an epoch; the last step may have fewer."""
    num_full, remainder = divmod(num_samples, batch_size)
    sizes = [batch_size] * num_full
    if remainder:
        sizes.append(remainder)
    return sizes
