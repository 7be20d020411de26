"""What a data set is: a subclass says where its images come from, the keys that all data sets share stand here."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import platformdirs
import torch
from torch import Tensor

from laptime.errors import UserError
from laptime.record.directory import expanded


@dataclass(frozen=True)
class Images:
    """Labelled images, in memory or mapped from a file.

    Attributes:
        images: uint8, (M, C, H, W).
        labels: int64, (N,), from 0 to the number of classes - 1.
        rows: int64, (N,): which of the images belong to these labels, where a part was taken of mapped ones, which are
            never copied as a whole; None: all, in order.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """A batch, (B, C, H, W) and (B,)."""
        return self.images[index if self.rows is None else self.rows[index]], self.labels[index]

    def take(self, index: Tensor | slice) -> "Images":
        """A part."""
        if self.rows is None:
            return Images(*self.at(index))
        return Images(self.images, self.labels[index], self.rows[index])

    def mapped(self) -> "Images":
        """The same, of which parts are taken by number."""
        return Images(self.images, self.labels, torch.arange(len(self)))

    def to(self, device: torch.device) -> "Images":
        return Images(self.images.to(device), self.labels.to(device))


@dataclass(kw_only=True)
class ImageData(ABC):
    """A data set of labelled images with its official training and test sets.

    The fields are the keys of the config group `dataset`; what they mean and their defaults stand in
    conf/dataset_base.yaml.

    Attributes:
        name: as in the config group.
        num_classes: number of classes; of the class, or of each object.
        mean, std: per channel, of pixels scaled to [0, 1]; published figures of the training set.
        synthetic: whether the images are made up.
        mappable: whether `load` maps the images from files where the pipeline is `mapped`, reading none of them.
    """

    root: str | None
    verify: bool
    val_fraction: float
    limit: int | None
    pipeline: Literal["memory", "mapped", "workers"]
    num_workers: int
    horizontal_flip: bool
    rotation_degrees: float

    name: ClassVar[str]
    num_classes: ClassVar[int]
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]
    synthetic: ClassVar[bool] = False
    mappable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not hasattr(self, "num_classes"):
            renamed = " (class_count is its former name)" if hasattr(self, "class_count") else ""
            raise TypeError(f"{type(self).__name__}.num_classes: is not defined{renamed}. Set it in the class.")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction={self.val_fraction}: must lie in [0, 1), a share of the training set.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit}: must be at least 1, or null for all samples.")
        if self.num_workers < 0:
            raise ValueError(f"num_workers={self.num_workers}: must be at least 0 (0: load in the training process).")
        if self.pipeline == "mapped" and not self.mappable:
            raise ValueError(f"pipeline=mapped: {self.name} lies in no files that can be mapped. Use pipeline=memory.")
        if not 0 <= self.rotation_degrees <= 180:
            raise ValueError(f"rotation_degrees={self.rotation_degrees}: must lie in [0, 180].")

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""

    @abstractmethod
    def load(self) -> tuple[Images, Images, str]:
        """Read the official training and test sets.

        Returns:
            Training set, test set, and a checksum of what was read (SHA-256 of the data, shortened to 16 digits).

        Raises:
            UserError: a file is absent and can't be fetched, or is damaged.
        """

    def num_bytes(self) -> int | None:
        """The bytes that all images take in memory, known before they are loaded; None: not known."""
        return None

    def folder(self) -> Path:
        """Where this data set's files are kept: `root`, else the user's cache folder."""
        return expanded("dataset.root", self.root) if self.root else cache_dir()


def cache_dir() -> Path:
    """The user's cache folder for data sets (on Linux ~/.cache/laptime, following XDG_CACHE_HOME).

    Raises:
        UserError: no home folder is known.
    """
    try:
        return Path(platformdirs.user_cache_dir("laptime", appauthor=False)).expanduser() / "datasets"
    except RuntimeError as error:
        raise UserError(
            "dataset.root=null: no home folder is known to keep data sets in. Set HOME or XDG_CACHE_HOME, or give "
            "dataset.root a folder."
        ) from error


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
