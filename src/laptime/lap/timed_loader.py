"""The one place where an epoch's clock starts and where waiting for data is measured."""

import time
from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from laptime.machine.device import Device
from laptime.ranks.rank import Rank

Batch = tuple[Tensor, Tensor]


class Pipeline(Protocol):
    """Makes the training batches of one epoch.

    `executions()` yields lists of (images, labels) on the training device: one entry per optimizer step, images
    float32 (B, C, H, W), labels int64 (B,). `batches()` yields the same one by one, as a loop by hand would draw them.
    """

    batch_size: int

    def executions(self) -> Iterator[list[Batch]]: ...

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
        started_at: `time.perf_counter()` when this epoch's first batch was asked for, the device idle.
        wait_s: seconds of this epoch spent waiting for batches.
    """

    def __init__(self, pipeline: Pipeline, order: EpochSampler, device: Device, rank: Rank) -> None:
        self.pipeline = pipeline
        self.sampler = order
        self.device = device
        self.rank = rank
        self.started_at = 0.0
        self.wait_s = 0.0

    def __len__(self) -> int:
        return len(self.pipeline)

    def __iter__(self) -> Iterator[list[Batch]]:
        self.device.synchronize()
        self.rank.barrier()  # all start together, so that the slowest rank's time is the run's
        self.started_at = before = time.perf_counter()
        self.wait_s = 0.0
        for execution in self.pipeline.executions():
            self.wait_s += time.perf_counter() - before
            yield execution
            before = time.perf_counter()
        self.wait_s += time.perf_counter() - before


def batch_sizes(num_samples: int, batch_size: int) -> list[int]:
    """The samples of each optimizer step of an epoch; the last one takes what is left."""
    whole, rest = divmod(num_samples, batch_size)
    sizes = [batch_size] * whole
    if rest:
        sizes.append(rest)
    return sizes
