"""Logistic regression: a baseline that every network should beat."""

import math

from torch import Tensor, nn


class LogisticRegression(nn.Module):
    """One linear layer on the pixels; with cross entropy, multinomial logistic regression.

    Args:
        input_shape: the shape of one image, (C, H, W).
        num_classes: number of logits.
    """

    name = "logistic_regression"

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), num_classes))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to logits (B, num_classes)."""
        logits: Tensor = self.layers(images)
        return logits
