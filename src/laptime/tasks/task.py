"""The base class of tasks: the loss, what is drawn for a step, and the kind of data."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from laptime.data.datamodule import DataModule
from laptime.data.source import DataSource
from laptime.lap.epoch_sums import Means


class Task(ABC):
    """What a network learns. Batches are pairs of inputs and targets; the network maps inputs to logits.

    Attributes:
        name: the option of the config group `task`.
        data_class: the base class of its data sets.
        data_module: makes batches of them.
        network_arguments: names of the arguments that a network may get from the data.
        content: what its data sets hold, in one word.
        has_accuracy: whether a prediction is either correct (a hit) or not. Otherwise there is no accuracy.
    """

    name: ClassVar[str]
    data_class: ClassVar[type[DataSource]]
    data_module: ClassVar[type[DataModule]]
    network_arguments: ClassVar[frozenset[str]]
    content: ClassVar[str]
    has_accuracy: ClassVar[bool]

    def start_epoch(self, seed: int) -> None:
        """Seed what `mix` draws in an epoch."""
        return

    def mix(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, float]:
        """Apply mixup to a batch, if it is configured.

        Returns:
            The inputs to train on, the targets of the samples that were mixed in, and mixup's lambda in [0, 1], the
            weight of the batch's own targets.
        """
        return inputs, targets, 1.0

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch in validation and test, a scalar."""

    def training_loss(self, logits: Tensor, targets: Tensor, mixed_targets: Tensor, lam: float) -> Tensor:
        """Return the mean loss of a batch in training, a scalar.

        Args:
            mixed_targets, lam: the last two results of `mix`.
        """
        return self.loss(logits, targets)

    @abstractmethod
    def score_of(self, means: Means) -> float | None:
        """Return the task's score in an epoch; None: it is not known."""

    def num_hits(self, logits: Tensor, targets: Tensor) -> Tensor | None:
        """Return the number of correct predictions, a scalar; None: the task has no accuracy."""
        return None

    def sample(self, network: nn.Module, data: DataModule, seed: int) -> str | None:
        """Return text that shows what a network has learned; None: the task produces no text.

        Args:
            network: in evaluation mode.
            data: the data that it was trained on.
            seed: determines the text.
        """
        return None
