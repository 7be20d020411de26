"""The base class of data sets: what Laptime asks about the data of every task."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch

from laptime.lap.timed_loader import Batch


class DataSource(ABC):
    """A data set with its official test set, whose samples are inputs and targets of a network.

    Attributes:
        name: the data set's name in the config group.
        synthetic: whether the samples are generated.
        val_fraction: the fraction of the training set that is used for validation.
        limit: the size to which the data are limited; None: not limited.
        pipeline: how batches are made.
        tokens_per_sample: the number of tokens in a sample; None: it is not text.
    """

    name: ClassVar[str]
    synthetic: ClassVar[bool] = False
    val_fraction: float
    limit: int | None
    pipeline: Any

    @property
    def tokens_per_sample(self) -> int | None:
        return None

    @property
    @abstractmethod
    def network_arguments(self) -> dict[str, Any]:
        """The arguments that a network gets from the data, by name."""

    @property
    @abstractmethod
    def description(self) -> str:
        """The network's input in words: `images of shape (1, 28, 28)`."""

    @property
    @abstractmethod
    def recorded_sizes(self) -> dict[str, Any]:
        """The sizes of a sample and of the targets, by their names in run.json's `dataset`."""

    @abstractmethod
    def logits_shape(self, size: int) -> tuple[int, ...]:
        """The shape of the logits for a batch of `size` samples."""

    @abstractmethod
    def example(self, size: int, device: torch.device | str) -> Batch:
        """Return a batch of zeros: inputs and targets of `size` samples."""
