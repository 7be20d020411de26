"""The LightningDataModule: splits a data set and makes batches with one of the pipelines."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from laptime.data.augment import FlipAndRotate, Normalize
from laptime.data.image_data import ImageData, Images, split
from laptime.data.memory import MemoryEvaluation, MemoryPipeline
from laptime.data.order import EpochOrder, LapOrder
from laptime.data.workers import (
    TransformedImages,
    WorkersEvaluation,
    WorkersPipeline,
    close,
    transform_of,
)
from laptime.errors import UserError
from laptime.lap.clock import LapClock
from laptime.lap.timed_loader import Batch, Pipeline, TimedLoader, batch_sizes
from laptime.machine.device import Device
from laptime.machine.hardware import require_free_memory
from laptime.ranks.rank import Rank
from laptime.text import byte_size


class DataModule(pl.LightningDataModule):
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
        data: ImageData,
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
        if data.pipeline == "workers" and data.image_shape[0] not in (1, 3):
            raise UserError(
                f"dataset.pipeline=workers: uses PIL, which supports 1 or 3 channels, but the images have "
                f"{data.image_shape[0]}. Use dataset.pipeline=memory."
            )
        self.data = data
        self._with_workers: list[WorkersPipeline | WorkersEvaluation] = []
        self.device = device
        self.clock = clock or LapClock(device)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.steps_per_execution = steps_per_execution
        if data.pipeline != "mapped":
            require_memory(data, device, rank)
        train, test, self.checksum = data.load()
        if data.pipeline == "mapped":
            train, test = train.mapped(), test.mapped()
        _check_labels(data, train.labels, test.labels)
        kept = slice(0, data.limit)
        self._train, self._val = split(train.take(kept), data.val_fraction, seed)
        self._test = test.take(kept)
        self.num_train, self.num_val, self.num_test = len(self._train), len(self._val), len(self._test)
        self._check_sizes(rank.world_size)
        self.rank = rank
        samples = (self.num_train, seed, rank.rank, rank.world_size)
        self.order = EpochOrder(*samples) if lap_steps is None else LapOrder(lap_steps, batch_size, *samples)
        # Each sample is evaluated by exactly one rank.
        of_this_rank = slice(rank.rank, None, rank.world_size)
        self._val, self._test = self._val.take(of_this_rank), self._test.take(of_this_rank)
        self._normalize = Normalize(data.mean, data.std, device.torch_device)
        if data.pipeline == "memory":
            self._train, self._val, self._test = (
                part.to(device.torch_device) for part in (self._train, self._val, self._test)
            )

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

    def teardown(self, stage: str) -> None:
        for pipeline in self._with_workers:
            close(pipeline.loader)
        self._with_workers.clear()

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

    def _pipeline(self) -> Pipeline:
        augment = FlipAndRotate(self.data.horizontal_flip, self.data.rotation_degrees)
        if self.data.pipeline != "workers":
            return MemoryPipeline(
                self._train, self.order, self._normalize, augment, self.batch_size, self.steps_per_execution
            )
        dataset = TransformedImages(self._train, transform_of(self.data), augment)
        pipeline = WorkersPipeline(
            dataset, self.order, self.batch_size, self.steps_per_execution, self.data.num_workers, self.device
        )
        self._with_workers.append(pipeline)
        return pipeline

    def _evaluation(self, part: Images) -> Iterable[Batch]:
        if self.data.pipeline != "workers":
            return MemoryEvaluation(part, self._normalize, self.eval_batch_size)
        dataset = TransformedImages(part, transform_of(self.data), FlipAndRotate(False, 0.0))
        evaluation = WorkersEvaluation(dataset, self.eval_batch_size, self.data.num_workers, self.device)
        self._with_workers.append(evaluation)
        return evaluation


def require_memory(data: ImageData, device: Device, rank: Rank) -> None:
    """Refuse a data set that does not fit into memory, before it is loaded.

    Raises:
        UserError: it does not fit; names the required and the available memory.
    """
    num_bytes = data.num_bytes()
    if num_bytes is None:
        return
    fix = "Use dataset.pipeline=mapped, which reads images from files when they are needed." if data.mappable else ""
    key = f"dataset={data.name} dataset.pipeline={data.pipeline}"
    if device.used != "cpu" and data.pipeline == "memory" and device.memory_bytes and num_bytes > device.memory_bytes:
        raise UserError(
            f"{key}: {byte_size(num_bytes, 'GB')} of images don't fit into the {device.used} device's "
            f"{byte_size(device.memory_bytes, 'GB')}. {fix or 'Use dataset.pipeline=workers.'}"
        )
    num_local_ranks = max(1, rank.world_size // rank.num_nodes)
    # Every rank reads all images, and then copies its part of them.
    description = "images, which are held twice{ranks} while training and validation sets are split"
    require_free_memory(key, num_bytes, description, num_local_ranks, fix or "Use a smaller data set.")


def _check_labels(data: ImageData, train: Tensor, test: Tensor) -> None:
    """Refuse labels that are no class, and classes without training samples. Labels are int64, (N,)."""
    labels = torch.cat([train, test])
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < data.num_classes:
        raise UserError(
            f"dataset: labels are from {int(labels.min())} to {int(labels.max())}. With {data.num_classes} classes "
            f"they must be from 0 to {data.num_classes - 1}."
        )
    missing = (torch.bincount(train, minlength=data.num_classes) == 0).nonzero().flatten().tolist()
    if missing:
        raise UserError(
            f"dataset={data.name}: no training samples of class {', '.join(map(str, missing[:5]))} ({data.num_classes} "
            "classes in total). Use complete files."
        )
