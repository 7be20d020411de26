"""The standard pipeline: a DataLoader whose worker processes apply torchvision's transforms to single images."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from laptime.data.augment import FlipAndRotate
from laptime.data.image_data import ImageData, Images
from laptime.data.order import EpochOrder
from laptime.lap.phases import OnPhase, ignore_phase
from laptime.lap.timed_loader import Batch
from laptime.machine.device import Device
from laptime.machine.sockets import use_short_socket_dir

if TYPE_CHECKING:  # torchvision and PIL are imported where they are used, because that takes a second
    from PIL import Image
    from torchvision import transforms


# The index of an image; in training with augmentation also its two random numbers, from `FlipAndRotate.draw`.
Sample = int | tuple[int, tuple[float, float]]


class TransformedImages(Dataset[tuple[Tensor, int]]):
    """A data set of single images, which PIL and torchvision's transforms convert from uint8 to float32 (C, H, W).

    It draws no random numbers, because they would depend on which worker gets an image.

    Args:
        data: images in main memory.
        transform: converts a PIL image to a tensor.
        augment: the augmentation to apply with the random numbers of a sample.
    """

    def __init__(self, data: Images, transform: "transforms.Compose", augment: FlipAndRotate) -> None:
        from PIL import Image

        self._image = Image.fromarray
        self.augment = augment
        self.images = data.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = data.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, sample: Sample) -> tuple[Tensor, int]:
        index, drawn = (sample, None) if isinstance(sample, int) else sample  # drawn: random numbers of `draw`
        pixels = self.images[index]
        image = self._image(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        return self.transform(image if drawn is None else self._augmented(image, *drawn)), self.labels[index]

    def _augmented(self, image: "Image.Image", mirror: float, turn: float) -> "Image.Image":
        from torchvision.transforms import InterpolationMode, functional

        if self.augment.horizontal_flip and mirror < 0.5:
            image = functional.hflip(image)
        if self.augment.degrees:
            image = functional.rotate(image, (2 * turn - 1) * self.augment.degrees, InterpolationMode.BILINEAR)
        return image


class _AugmentedOrder(Sampler[Sample]):
    """Yields the index of each sample with its random numbers for augmentation in this epoch."""

    def __init__(self, order: EpochOrder, augment: FlipAndRotate) -> None:
        self.order = order
        self.augment = augment

    def __iter__(self) -> Iterator[Sample]:
        generator = self.order.generator(torch.device("cpu"))
        for part in self.order.parts():
            yield from zip(part.tolist(), self.augment.draw(len(part), generator).tolist(), strict=True)

    def __len__(self) -> int:
        return len(self.order)


def transform_of(data: ImageData) -> "transforms.Compose":
    """Return the transforms that convert an image to float32 in [0, 1] and then normalize each channel."""
    from torchvision import transforms

    channels = data.image_shape[0]
    mean, std = (value * channels if len(value) == 1 else value for value in (data.mean, data.std))
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])


class WorkersPipeline:
    """Training batches from worker processes, grouped by `steps_per_execution`.

    Args:
        dataset: the single images.
        order: the order of the samples.
        batch_size: samples per optimizer step.
        steps_per_execution: batches per step group.
        num_workers: number of worker processes; 0: load in the training process.
        device: where the batches are placed.

    Attributes:
        on_phase: called when a batch has arrived from the workers, and when its copy to the device was started.
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
        # The workers load the next step group while the current one is trained. With less prefetching, loading and
        # training would not overlap.
        prefetch = -(-2 * steps_per_execution // max(1, num_workers))
        sampler = _AugmentedOrder(order, dataset.augment) if dataset.augment else order
        self.loader = _loader(dataset, batch_size, num_workers, device, sampler, prefetch)
        self.batch_size = batch_size
        self.steps_per_execution = steps_per_execution
        self.device = device
        self.on_phase: OnPhase = ignore_phase

    def __len__(self) -> int:
        return -(-len(self.loader) // self.steps_per_execution)

    def step_groups(self) -> Iterator[list[Batch]]:
        batches = self.batches()
        while step_group := list(islice(batches, self.steps_per_execution)):
            yield step_group

    def batches(self) -> Iterator[Batch]:
        return _on_device(self.loader, self.device, lambda phase: self.on_phase(phase))


class WorkersEvaluation:
    """Batches of a whole data set in order, from worker processes.

    Args:
        dataset: the single images.
        batch_size: samples per batch.
        num_workers: number of worker processes.
        device: where the batches are placed.
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
    order: Sampler[Any] | None,
    prefetch: int,
) -> DataLoader[tuple[Tensor, int]]:
    if num_workers:
        use_short_socket_dir()  # for torch's sockets, which transfer tensors
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=order,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        prefetch_factor=max(2, prefetch) if num_workers else None,
        pin_memory=device.used == "cuda",
        generator=torch.Generator(),  # for the seeds of workers; torch's global one is for dropout
        worker_init_fn=_follow_parent,
    )


def close(loader: DataLoader[tuple[Tensor, int]]) -> None:
    """End the worker processes, which otherwise live as long as the loader.

    torch 2.14 has no public function for this: https://github.com/pytorch/pytorch/issues/64766
    """
    iterator = loader._iterator
    if iterator is not None and hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()
    loader._iterator = None


def _follow_parent(worker: int) -> None:
    """Let the training process end the workers: they ignore Ctrl-C, and they exit if it is killed.

    torch's own watchdog sometimes misses that the parent was killed. Seen with torch 2.14, not reported.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    if sys.platform == "linux" and parent.pid == os.getppid():
        pr_set_pdeathsig = 1  # prctl(2)
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    else:  # the parent process is a forkserver, as in ranks
        threading.Thread(target=exit_with_parent, daemon=True).start()


def _on_device(
    loader: DataLoader[tuple[Tensor, int]], device: Device, on_phase: OnPhase = ignore_phase
) -> Iterator[Batch]:
    target = device.torch_device
    for images, labels in loader:
        if device.used != "cpu":
            on_phase("data")
            images, labels = images.to(target, non_blocking=True), labels.to(target, non_blocking=True)
            on_phase("host_to_device")
        yield images, labels
