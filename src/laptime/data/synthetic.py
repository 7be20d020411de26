"""Generated images: each class has a random template, and each image is the template of its class plus noise."""

import hashlib
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from laptime.data import files
from laptime.data.image_data import ImageData, Images
from laptime.errors import UserError

_SEED = 20_250_810
_NOISE = 48.0


@dataclass(kw_only=True)
class Synthetic(ImageData):
    """Learnable images of any shape and number of classes. They are the same on every machine and for every seed."""

    shape: list[int]
    num_classes: int  # type: ignore[misc]  # an instance attribute here
    num_train: int
    num_test: int

    name = "synthetic"
    mean = (0.5,)
    std = (0.25,)
    synthetic = True
    mappable = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"shape={self.shape}: must be three sizes of at least 1: [channels, height, width].")
        if self.num_classes < 2:
            raise ValueError(f"num_classes={self.num_classes}: must be at least 2.")
        for key in ("num_train", "num_test"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key}={getattr(self, key)}: must be at least 1.")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.shape
        return (channels, height, width)

    def num_bytes(self) -> int:
        return (self.num_train + self.num_test) * math.prod(self.shape)

    def load(self) -> tuple[Images, Images, str]:
        if self.pipeline == "mapped":
            return self._mapped()
        return self._make(lambda name, shape: np.empty(shape, np.uint8))

    def _make(self, allocate: Callable[[str, tuple[int, ...]], np.ndarray]) -> tuple[Images, Images, str]:
        """Generate the images.

        Args:
            allocate: returns a uint8 array of the given shape, for `train` or `test`.
        """
        generator = torch.Generator().manual_seed(_SEED)
        templates = torch.randint(64, 192, (self.num_classes, *self.shape), generator=generator, dtype=torch.float32)
        parts = []
        digest = hashlib.sha256(str(self.shape).encode())
        for name, count in (("train", self.num_train), ("test", self.num_test)):
            images = torch.from_numpy(allocate(name, (count, *self.shape)))
            parts.append(self._draw(images, templates, generator))
            digest.update(images.numpy().data)
            digest.update(parts[-1].labels.numpy().data)
        return parts[0], parts[1], digest.hexdigest()[:16]

    def _mapped(self) -> tuple[Images, Images, str]:
        """Map the images from files, which are created the first time."""
        name = f"{'x'.join(map(str, self.shape))}-{self.num_classes}-{self.num_train}-{self.num_test}"
        folder = self.folder() / self.name / name
        if not folder.exists():
            with files.create_atomically(folder, self.num_bytes()) as unfinished:

                def allocate(part: str, shape: tuple[int, ...]) -> np.ndarray:
                    return np.lib.format.open_memmap(unfinished / f"{part}.npy", "w+", np.uint8, shape)

                train, test, checksum = self._make(allocate)
                np.savez(
                    unfinished / "labels.npz", train=train.labels.numpy(), test=test.labels.numpy(), checksum=checksum,
                    stamps=_stamps(unfinished),
                )  # fmt: skip
        try:
            with np.load(folder / "labels.npz") as labels:
                if not np.array_equal(labels["stamps"], _stamps(folder)):  # a checksum would have to read all images
                    raise ValueError("its image files were modified after Laptime wrote them")
                train, test = (
                    Images(
                        torch.from_numpy(np.lib.format.open_memmap(folder / f"{part}.npy", "c")),
                        torch.from_numpy(labels[part]),
                    )
                    for part in ("train", "test")
                )
                return train, test, str(labels["checksum"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(
                f"dataset: {folder} is damaged ({error}). Delete it, so that it is created again."
            ) from error

    def _draw(self, images: torch.Tensor, templates: torch.Tensor, generator: torch.Generator) -> Images:
        count = len(images)
        labels = torch.randint(0, self.num_classes, (count,), generator=generator)
        chunk = max(1, 2**24 // math.prod(self.shape))
        for start in range(0, count, chunk):
            part = labels[start : start + chunk]
            noise = torch.randn((len(part), *self.shape), generator=generator) * _NOISE
            images[start : start + chunk] = (templates[part] + noise).clamp_(0, 255).to(torch.uint8)
        return Images(images, labels)


def _stamps(folder: Path) -> np.ndarray:
    """The size in bytes and the modification time in ns of each image file: int64, (2, 2)."""
    stats = [(folder / f"{part}.npy").stat() for part in ("train", "test")]
    return np.array([(stat.st_size, stat.st_mtime_ns) for stat in stats], np.int64)
