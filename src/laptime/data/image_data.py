"""The base class of data sets of images, with the keys that all of them have. Subclasses load the images."""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import platformdirs
import torch
from torch import Tensor

from laptime.data.source import DataSource
from laptime.errors import UserError
from laptime.lap.timed_loader import Batch
from laptime.record.directory import expanded


@dataclass(frozen=True)
class Images:
    """Labeled images, in memory or mapped from a file.

    Attributes:
        images: uint8, (M, C, H, W).
        labels: int64, (N,), from 0 to the number of classes - 1.
        rows: the index of each label's image, int64, (N,); None: all images, in order. With rows, a part of mapped
            images need not be copied.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, index: Tensor | slice) -> tuple[Tensor, Tensor]:
        """Return a batch: images (B, C, H, W) and labels (B,)."""
        return self.images[index if self.rows is None else self.rows[index]], self.labels[index]

    def take(self, index: Tensor | slice) -> "Images":
        """Return a subset of the samples."""
        if self.rows is None:
            return Images(*self.at(index))
        return Images(self.images, self.labels[index], self.rows[index])

    def mapped(self) -> "Images":
        """Return the same samples with `rows`, so that `take` does not copy images."""
        return Images(self.images, self.labels, torch.arange(len(self)))

    def to(self, device: torch.device) -> "Images":
        return Images(self.images.to(device), self.labels.to(device))


@dataclass(kw_only=True)
class ImageData(DataSource):
    """A data set of labeled images with its official training and test sets.

    The fields are the keys of the config group `dataset`. conf/dataset_base.yaml explains them and sets the defaults.

    Attributes:
        name: the data set's name in the config group.
        num_classes: the number of classes; a class attribute or an instance attribute.
        mean, std: mean and standard deviation of each channel, for pixels scaled to [0, 1]; published values for the
            training set.
        synthetic: whether the images are generated.
        mappable: whether `load` supports `pipeline=mapped`, i.e. maps the images from files instead of reading them.
    """

    root: str | None
    verify: bool
    val_fraction: float
    limit: int | None
    pipeline: Literal["memory", "mapped", "workers"]
    num_workers: int
    horizontal_flip: bool
    rotation_degrees: float

    num_classes: ClassVar[int]
    mean: ClassVar[tuple[float, ...]]
    std: ClassVar[tuple[float, ...]]
    mappable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not hasattr(self, "num_classes"):
            renamed = " (it was called class_count before)" if hasattr(self, "class_count") else ""
            raise TypeError(f"{type(self).__name__}.num_classes: must be set in the class{renamed}.")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction={self.val_fraction}: must be in [0, 1).")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit={self.limit}: must be at least 1, or null for all samples.")
        if self.num_workers < 0:
            raise ValueError(f"num_workers={self.num_workers}: must be at least 0 (0: load in the training process).")
        if self.pipeline == "mapped" and not self.mappable:
            raise ValueError(f"pipeline=mapped: the files of {self.name} can't be mapped. Use pipeline=memory.")
        if not 0 <= self.rotation_degrees <= 180:
            raise ValueError(f"rotation_degrees={self.rotation_degrees}: must be in [0, 180].")

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of one image."""

    @abstractmethod
    def load(self) -> tuple[Images, Images, str]:
        """Read the official training and test sets.

        Returns:
            Training set, test set, and a checksum: the first 16 hex digits of the SHA-256 of the data.

        Raises:
            UserError: a file is damaged, or is missing and can't be downloaded.
        """

    @property
    def network_arguments(self) -> dict[str, Any]:
        return {"input_shape": self.image_shape, "num_classes": self.num_classes}

    @property
    def description(self) -> str:
        return f"images of shape {self.image_shape}"

    @property
    def recorded_sizes(self) -> dict[str, Any]:
        return {"shape": list(self.image_shape), "num_classes": self.num_classes}

    def logits_shape(self, size: int) -> tuple[int, ...]:
        return (size, self.num_classes)

    def example(self, size: int, device: torch.device | str) -> Batch:
        images = torch.zeros(size, *self.image_shape, device=device)
        return images, torch.zeros(size, dtype=torch.int64, device=device)

    def num_bytes(self) -> int | None:
        """The bytes that all images take in memory, known before they are loaded; None: not known."""
        return None

    def folder(self) -> Path:
        """The folder that contains the data set's files: `root`, or the user's cache folder."""
        return expanded("dataset.root", self.root) if self.root else cache_dir()


def cache_dir() -> Path:
    """The user's cache folder for data sets (on Linux ~/.cache/laptime, following XDG_CACHE_HOME).

    Raises:
        UserError: there is no home folder.
    """
    try:
        return Path(platformdirs.user_cache_dir("laptime", appauthor=False)).expanduser() / "datasets"
    except RuntimeError as error:
        raise UserError(
            "dataset.root=null: data sets are stored in the home folder, but none is set. Set HOME or XDG_CACHE_HOME, "
            "or set dataset.root to a folder."
        ) from error


def split(train: Images, val_fraction: float, seed: int) -> tuple[Images, Images]:
    """Split off a validation set, which the seed determines.

    Returns:
        Training set and validation set, with N - round(N * val_fraction) and round(N * val_fraction) samples.

    Raises:
        UserError: one of them would be empty.
    """
    num_val = round(len(train) * val_fraction)
    if not val_fraction:
        return train, train.take(slice(0, 0))
    if num_val == 0 or num_val == len(train):
        raise UserError(
            f"dataset.val_fraction={val_fraction}: splits {len(train)} samples into {num_val} for validation and "
            f"{len(train) - num_val} for training. Use another fraction or more samples."
        )
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    return train.take(order[num_val:].sort().values), train.take(order[:num_val].sort().values)
