"""The LightningDataModule: splits a data set over the ranks, and makes batches of it with one of the pipelines."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch

from laptime.data.order import EpochOrder, LapOrder
from laptime.data.source import DataSource
from laptime.errors import UserError
from laptime.lap.clock import LapClock
from laptime.lap.timed_loader import Batch, Pipeline, TimedLoader, batch_sizes
from laptime.machine.device import Device
from laptime.ranks.rank import Rank


class DataModule(pl.LightningDataModule, ABC):
    """Loads a data set in its constructor, and makes batches on the training device.

    Args:
        data: the data set.
        device: where the batches are placed.
        batch_size: samples per optimizer step on this rank.
        eval_batch_size: samples per batch in validation and test.
        steps_per_execution: maximum number of batches in a step group.
        seed: the seed of the run. It determines the validation set and the order of samples.
        rank: this process, which trains on its part of the samples and evaluates its part.
        clock: times the training batches of an epoch; None: a new one.
        lap_steps: optimizer steps of a lap, which takes the place of an epoch; None: epochs are passes over the data.

    Attributes:
        num_train, num_val, num_test: the numbers of samples over all ranks.
        checksum: the checksum of the data.

    Raises:
        UserError: files are missing or damaged, or the training set is smaller than a batch.
    """

    def __init__(
        self,
        data: DataSource,
        device: Device,
        batch_size: int,
        eval_batch_size: int,
        steps_per_execution: int,
        seed: int,
        rank: Rank = Rank(),  # noqa: B008
        clock: LapClock | None = None,
        lap_steps: int | None = None,
    ) -> None:
        super().__init__()
        self.data = data
        self.device = device
        self.clock = clock or LapClock(device)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.steps_per_execution = steps_per_execution
        self.rank = rank
        self._train, self._val, self._test, self.checksum = self._load(seed)
        self.num_train, self.num_val, self.num_test = len(self._train), len(self._val), len(self._test)
        self._check_sizes(rank.world_size)
        samples = (self.num_train, seed, rank.rank, rank.world_size)
        self.order = EpochOrder(*samples) if lap_steps is None else LapOrder(lap_steps, batch_size, *samples)
        # Each sample is evaluated by exactly one rank.
        of_this_rank = slice(rank.rank, None, rank.world_size)
        self._val, self._test = self._val.take(of_this_rank), self._test.take(of_this_rank)
        if data.pipeline == "memory":
            self._train, self._val, self._test = (
                part.to(device.torch_device) for part in (self._train, self._val, self._test)
            )

    @abstractmethod
    def _load(self, seed: int) -> tuple[Any, Any, Any, str]:
        """Return training, validation and test samples, and the checksum of the data.

        Samples have `len`, `take(slice)` and `to(device)`.
        """

    @abstractmethod
    def _pipeline(self) -> Pipeline:
        """Return the pipeline of the training batches."""

    @abstractmethod
    def _evaluation(self, part: Any) -> Iterable[Batch]:
        """Return the batches of a part in order."""

    def _check_sizes(self, world_size: int) -> None:
        if self.batch_size * world_size > self.num_train:
            raise UserError(
                f"training.batch_size={self.batch_size}: is larger than the training set of {self.num_train} samples"
                f"{f' divided among {world_size} ranks' if world_size > 1 else ''}. Use a smaller batch size."
            )
        if 0 < self.num_val < world_size:
            raise UserError(
                f"dataset.val_fraction={self.data.val_fraction}: leaves {self.num_val} validation samples, fewer than "
                f"strategy.world_size={world_size}. Use a larger fraction."
            )

    def train_dataloader(self) -> TimedLoader:
        return TimedLoader(self._pipeline(), self.order, self.clock, self.rank)

    def val_dataloader(self) -> Iterable[Batch]:
        return self._evaluation(self._val) if self.num_val else []

    def test_dataloader(self) -> Iterable[Batch]:
        return self._evaluation(self._test)

    def test_batches(self, num_ranks: int) -> Iterator[Batch]:
        """The test batches of `num_ranks` ranks, one rank after the other."""
        for rank in range(num_ranks):
            yield from self._evaluation(self._test.take(slice(rank, None, num_ranks)))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return the batch unchanged, because the pipelines make batches on the device."""
        return batch

    @property
    def num_steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch (or lap)."""
        return -(-len(self.order) // self.batch_size)

    def train_batch_sizes(self) -> list[int]:
        """The number of samples in each optimizer step of an epoch on this rank."""
        return batch_sizes(len(self.order), self.batch_size)

    def val_batch_sizes(self) -> list[int]:
        """The number of samples in each validation batch on this rank."""
        return batch_sizes(len(self._val), self.eval_batch_size)
