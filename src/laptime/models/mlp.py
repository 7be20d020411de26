"""Multi-layer perceptron."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from laptime.models.parts import check_head, head


class MLP(nn.Module):
    """Linear layers with ReLU and dropout between them.

    Args:
        input_shape: the shape of one image, (C, H, W).
        num_classes: number of logits.
        hidden_sizes: width of each hidden layer.
        dropout: dropout probability after each hidden layer, in [0, 1).

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
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        logits: Tensor = self.layers(images)
        return logits
