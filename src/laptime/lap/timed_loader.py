"""Where the clock of Laptime's own epochs starts, and where waiting for data is measured."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from laptime.lap.clock import LapClock
from laptime.ranks.rank import Rank

Batch = tuple[Tensor, Tensor]


class Pipeline(Protocol):
    """Makes the training batches of one epoch.

    `step_groups()` yields lists of (images, labels) on the training device: one entry per optimizer step, images
    float32 (B, C, H, W), labels int64 (B,). `batches()` yields the same one by one, as a loop by hand would draw them.
    """

    batch_size: int

    def step_groups(self) -> Iterator[list[Batch]]: ...

    def batches(self) -> Iterator[Batch]: ...

    def __len__(self) -> int:
        """Number of lists in an epoch."""
        ...


class EpochSampler(Protocol):
    """What decides which samples an epoch takes, and in which order.

    Attributes:
        epoch: from 0.
    """

    epoch: int

    def set_epoch(self, epoch: int) -> None: ...

    def __len__(self) -> int:
        """Number of this rank's samples in an epoch."""
        ...


class TimedLoader:
    """What Lightning iterates over: a pipeline, with a clock.

    The work of an epoch starts when its first batch is asked for, not when the iterator is made: Lightning makes the
    first epoch's iterator early.

    Attributes:
        sampler: Lightning tells it the epoch.
        clock: of this epoch; runs from the first batch on, which all ranks ask for together.
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
        clock.start(self.rank.barrier)  # all start together, so that the slowest rank's time is the run's
        clock.begin_wait()
        for step_group in self.pipeline.step_groups():
            clock.end_wait()
            yield step_group
            clock.begin_wait()
        clock.end_wait()


def batch_sizes(num_samples: int, batch_size: int) -> list[int]:
    """The samples of each optimizer step of an epoch; the last one takes what is left."""
    whole, rest = divmod(num_samples, batch_size)
    sizes = [batch_size] * whole
    if rest:
        sizes.append(rest)
    return sizes
