"""Made-up images: each class has a random template, each image is its class's template under noise."""

import hashlib
import math
from dataclasses import dataclass

import psutil
import torch

from laptime.data.image_data import ImageData, Images
from laptime.errors import UserError

_SEED = 20_250_810
_NOISE = 48.0


@dataclass(kw_only=True)
class Synthetic(ImageData):
    """Images of any shape and class count, learnable, and the same on every machine and for every seed."""

    shape: list[int]
    num_classes: int
    num_train: int
    num_test: int

    name = "synthetic"
    mean = (0.5,)
    std = (0.25,)
    synthetic = True

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

    @property
    def class_count(self) -> int:
        return self.num_classes

    def load(self) -> tuple[Images, Images, str]:
        size = (self.num_train + self.num_test) * math.prod(self.shape)
        available = psutil.virtual_memory().available
        if size > available:
            raise UserError(
                f"dataset.shape={self.shape}: {self.num_train + self.num_test} such images take {size / 1e9:.1f} GB, "
                f"and {available / 1e9:.1f} GB are free. Use smaller ones, or fewer with dataset.num_train."
            )
        generator = torch.Generator().manual_seed(_SEED)
        templates = torch.randint(64, 192, (self.num_classes, *self.shape), generator=generator, dtype=torch.float32)
        train = self._draw(self.num_train, templates, generator)
        test = self._draw(self.num_test, templates, generator)
        digest = hashlib.sha256(str(self.shape).encode())
        for part in (*train, *test):
            digest.update(part.numpy().tobytes())
        return train, test, digest.hexdigest()[:16]

    def _draw(self, count: int, templates: torch.Tensor, generator: torch.Generator) -> Images:
        labels = torch.randint(0, self.num_classes, (count,), generator=generator)
        images = torch.empty((count, *self.shape), dtype=torch.uint8)
        chunk = max(1, 2**24 // math.prod(self.shape))
        for start in range(0, count, chunk):
            part = labels[start : start + chunk]
            noise = torch.randn((len(part), *self.shape), generator=generator) * _NOISE
            images[start : start + chunk] = (templates[part] + noise).clamp_(0, 255).to(torch.uint8)
        return Images(images, labels)
