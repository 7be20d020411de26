"""Multi-layer perceptron."""

import math
from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU and dropout between them.

    Args:
        input_shape: of one image, (C, H, W).
        num_classes: number of logits.
        hidden_sizes: width of each hidden layer.
        dropout: share of each hidden layer's outputs that is dropped in training, in [0, 1).

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self, input_shape: tuple[int, int, int], num_classes: int, hidden_sizes: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        check_head(hidden_sizes, dropout)
        self.layers = nn.Sequential(nn.Flatten(), *head(math.prod(input_shape), hidden_sizes, num_classes, dropout))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, num_classes)."""
        logits: Tensor = self.layers(images)
        return logits


def check_head(hidden_sizes: Sequence[int], dropout: float) -> None:
    """Check the arguments of `head`.

    Raises:
        ValueError: one is out of its range.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout}: must lie in [0, 1), the share of outputs that is dropped.")
    if any(size < 1 for size in hidden_sizes):
        raise ValueError(f"hidden_sizes={list(hidden_sizes)}: every layer must have at least one unit.")


def head(num_inputs: int, hidden_sizes: Sequence[int], num_classes: int, dropout: float) -> list[nn.Module]:
    """Hidden linear layers, each with ReLU and dropout, and a last one that gives the logits."""
    layers: list[nn.Module] = []
    for size in hidden_sizes:
        layers += [nn.Linear(num_inputs, size), nn.ReLU(), nn.Dropout(dropout)]
        num_inputs = size
    return [*layers, nn.Linear(num_inputs, num_classes)]
