"""The usual pipeline: a DataLoader whose worker processes apply torchvision's transforms image by image."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from laptime.data.image_data import ImageData, Images
from laptime.data.order import EpochOrder, epoch_seed
from laptime.data.timed_loader import Batch
from laptime.device import Device
from laptime.fresh_processes import make_room_for_sockets
from laptime.step_clock import OnPart, unheeded

if TYPE_CHECKING:  # torchvision and PIL are imported where they are used: that takes a second
    from torchvision import transforms


class TransformedImages(Dataset[tuple[Tensor, int]]):
    """Images one by one: from uint8 through PIL and torchvision's transforms to float32 (C, H, W).

    Args:
        data: in main memory.
        transform: from a PIL image to a tensor.
    """

    def __init__(self, data: Images, transform: "transforms.Compose") -> None:
        from PIL import Image

        self._image = Image.fromarray
        self.images = data.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = data.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = self.images[index]
        image = self._image(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        return self.transform(image), self.labels[index]


def training_transform(data: ImageData) -> "transforms.Compose":
    """Flip and rotation as the data set asks for, then `evaluation_transform`."""
    from torchvision import transforms

    steps: list[torch.nn.Module] = []
    if data.horizontal_flip:
        steps.append(transforms.RandomHorizontalFlip())
    if data.rotation_degrees:
        bilinear = transforms.InterpolationMode.BILINEAR
        steps.append(transforms.RandomRotation(data.rotation_degrees, interpolation=bilinear))
    return transforms.Compose([*steps, *evaluation_transform(data).transforms])


def evaluation_transform(data: ImageData) -> "transforms.Compose":
    """To float32 in [0, 1], then normalised per channel."""
    from torchvision import transforms

    channels = data.image_shape[0]
    mean, std = (value * channels if len(value) == 1 else value for value in (data.mean, data.std))
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])


class WorkersPipeline:
    """Training batches from worker processes, grouped by `steps_per_execution`.

    Args:
        dataset: images one by one.
        order: which samples in which order.
        batch_size: samples per optimizer step.
        steps_per_execution: batches per list.
        num_workers: worker processes; 0: load in the training process.
        device: where the batches go.

    Attributes:
        on_part: called when a batch has come from the workers, and when it is on its way to the device.
    """

    def __init__(
        self,
        dataset: TransformedImages,
        order: EpochOrder,
        batch_size: int,
        steps_per_execution: int,
        num_workers: int,
        device: Device,
    ) -> None:
        # A whole list is on its way while the one before is trained on, or waiting would be no overlap but all of it.
        prefetch = -(-2 * steps_per_execution // max(1, num_workers))
        self.loader = _loader(dataset, batch_size, num_workers, device, order, prefetch)
        self.order = order
        self.batch_size = batch_size
        self.steps_per_execution = steps_per_execution
        self.device = device
        self.on_part: OnPart = unheeded

    def __len__(self) -> int:
        return -(-len(self.loader) // self.steps_per_execution)

    def executions(self) -> Iterator[list[Batch]]:
        batches = self.batches()
        while execution := list(islice(batches, self.steps_per_execution)):
            yield execution

    def batches(self) -> Iterator[Batch]:
        # The workers' seeds are drawn from a generator of their own, so that dropout sees the same numbers with either
        # pipeline.
        assert self.loader.generator is not None
        self.loader.generator.manual_seed(epoch_seed(self.order.seed, self.order.epoch, self.order.rank) ^ 1)
        return _on_device(self.loader, self.device, lambda part: self.on_part(part))


class WorkersEvaluation:
    """Batches of a whole data set in order, from worker processes.

    Args:
        dataset: images one by one.
        batch_size: samples per batch.
        num_workers: worker processes.
        device: where the batches go.
    """

    def __init__(self, dataset: TransformedImages, batch_size: int, num_workers: int, device: Device) -> None:
        self.loader = _loader(dataset, batch_size, num_workers, device, None, 2)
        self.device = device

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        return _on_device(self.loader, self.device)


def _loader(
    dataset: TransformedImages,
    batch_size: int,
    num_workers: int,
    device: Device,
    order: EpochOrder | None,
    prefetch: int,
) -> DataLoader[tuple[Tensor, int]]:
    if num_workers:
        make_room_for_sockets()  # of torch's, which hand tensors over
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=order,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        prefetch_factor=max(2, prefetch) if num_workers else None,
        pin_memory=device.used == "cuda",
        generator=torch.Generator(),
        worker_init_fn=_depend_on_the_parent,
    )


def close(loader: DataLoader[tuple[Tensor, int]]) -> None:
    """End the worker processes, which otherwise live as long as the loader."""
    iterator = loader._iterator
    if iterator is not None and hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()
    loader._iterator = None


def _depend_on_the_parent(worker: int) -> None:
    """Leave it to the training process when the workers end (Ctrl-C reaches them too); end with it when it is killed,
    which torch's own watchdog has been seen to miss.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_the_parent() -> None:
        parent.join()
        os._exit(1)

    if sys.platform == "linux" and parent.pid == os.getppid():
        pr_set_pdeathsig = 1  # prctl(2)
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    else:  # a forkserver's child, as in ranks that were started by one
        threading.Thread(target=end_with_the_parent, daemon=True).start()


def _on_device(loader: DataLoader[tuple[Tensor, int]], device: Device, on_part: OnPart = unheeded) -> Iterator[Batch]:
    target = device.torch_device
    for images, labels in loader:
        if device.used != "cpu":
            on_part("data")
            images, labels = images.to(target, non_blocking=True), labels.to(target, non_blocking=True)
            on_part("host_to_device")
        yield images, labels
