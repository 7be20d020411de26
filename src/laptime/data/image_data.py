"""What a data set is: a subclass says where its images come from, the keys that all data sets share stand here."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import platformdirs
import torch
from torch import Tensor

from laptime.errors import UserError
from laptime.run_dir import expanded


class Images(NamedTuple):
    """Labelled images in memory.

    Attributes:
        images: uint8, (N, C, H, W).
        labels: int64, (N,), from 0 to the number of classes - 1.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor | slice) -> "Images":
        return Images(self.images[index], self.labels[index])

    def to(self, device: torch.device) -> "Images":
        return Images(self.images.to(device), self.labels.to(device))


@dataclass(kw_only=True)
class ImageData(ABC):
    """A data set of labelled images with its official training and test sets.

    The fields are the keys of the config group `dataset`; what they mean and their defaults stand in
    conf/dataset/mnist.yaml.

    Class attributes:
        name: as in the config group.
        shape: of one image, (C, H, W).
        num_classes: number of classes.
        mean, std: per channel, of pixels scaled to [0, 1]; published figures of the training set.
        synthetic: whether the images are made up.
    """

    root: str | None
    verify: bool
    val_fraction: float
    limit: int | None
    pipeline: Literal["memory", "workers"]
    num_workers: int
    horizontal_flip: bool
    rotation_degrees: float

    name: ClassVar[str]
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]
    synthetic: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction={self.val_fraction}: must lie in [0, 1), a share of the training set.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit}: must be at least 1, or null for all samples.")
        if self.num_workers < 0:
            raise ValueError(f"num_workers={self.num_workers}: must be at least 0 (0: load in the training process).")
        if not 0 <= self.rotation_degrees <= 180:
            raise ValueError(f"rotation_degrees={self.rotation_degrees}: must lie in [0, 180].")

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""

    @property
    @abstractmethod
    def class_count(self) -> int:
        """Number of classes."""

    @abstractmethod
    def load(self) -> tuple[Images, Images, str]:
        """Read the official training and test sets.

        Returns:
            Training set, test set, and a checksum of what was read (SHA-256 of the data, shortened to 16 digits).

        Raises:
            UserError: a file is absent and can't be fetched, or is damaged.
        """

    def folder(self) -> Path:
        """Where this data set's files are kept: `root`, else the user's cache folder."""
        return expanded("dataset.root", self.root) if self.root else cache_dir()


def cache_dir() -> Path:
    """The user's cache folder for data sets (on Linux ~/.cache/laptime, following XDG_CACHE_HOME)."""
    return Path(platformdirs.user_cache_dir("laptime", appauthor=False)) / "datasets"


def split(train: Images, val_fraction: float, seed: int) -> tuple[Images, Images]:
    """Hold back a share of the training set for validation, chosen by the seed.

    Returns:
        Training and validation part, of N - round(N * val_fraction) and round(N * val_fraction) samples.

    Raises:
        UserError: one of the parts would be empty.
    """
    num_val = round(len(train) * val_fraction)
    if not val_fraction:
        return train, train.take(slice(0, 0))
    if num_val == 0 or num_val == len(train):
        raise UserError(
            f"dataset.val_fraction={val_fraction}: of {len(train)} training samples leaves "
            f"{num_val} for validation and {len(train) - num_val} for training. Use another share or more samples."
        )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    return train.take(order[num_val:].sort().values), train.take(order[:num_val].sort().values)
