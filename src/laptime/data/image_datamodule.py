"""Batches of images: loads and splits a data set of images, and makes its pipelines."""

from collections.abc import Iterable

import torch
from torch import Tensor

from laptime.data.augment import FlipAndRotate, Normalize
from laptime.data.datamodule import DataModule
from laptime.data.image_data import ImageData, Images, split
from laptime.data.memory import MemoryEvaluation, MemoryPipeline
from laptime.data.workers import (
    TransformedImages,
    WorkersEvaluation,
    WorkersPipeline,
    close,
    transform_of,
)
from laptime.errors import UserError
from laptime.lap.timed_loader import Batch, Pipeline
from laptime.machine.device import Device
from laptime.machine.hardware import require_free_memory
from laptime.ranks.rank import Rank
from laptime.text import byte_size


class ImageDataModule(DataModule):
    """Makes batches of images, float32 (B, C, H, W), and labels, int64 (B,). See `DataModule`."""

    data: ImageData

    def _load(self, seed: int) -> tuple[Images, Images, Images, str]:
        data = self.data
        if data.pipeline == "workers" and data.image_shape[0] not in (1, 3):
            raise UserError(
                f"dataset.pipeline=workers: uses PIL, which supports 1 or 3 channels, but the images have "
                f"{data.image_shape[0]}. Use dataset.pipeline=memory."
            )
        self._with_workers: list[WorkersPipeline | WorkersEvaluation] = []
        if data.pipeline != "mapped":
            require_memory(data, self.device, self.rank)
        train, test, checksum = data.load()
        if data.pipeline == "mapped":
            train, test = train.mapped(), test.mapped()
        _check_labels(data, train.labels, test.labels)
        self._normalize = Normalize(data.mean, data.std, self.device.torch_device)
        kept = slice(0, data.limit)
        train, val = split(train.take(kept), data.val_fraction, seed)
        return train, val, test.take(kept), checksum

    def teardown(self, stage: str) -> None:
        for pipeline in self._with_workers:
            close(pipeline.loader)
        self._with_workers.clear()

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
