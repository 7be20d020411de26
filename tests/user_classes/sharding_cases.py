"""Optimizers, networks and callbacks that are difficult for a sharded optimizer."""

from collections.abc import Iterable
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn


def decay_by_shape(params: Iterable[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW without weight decay for biases."""
    params = list(params)
    groups = [
        {"params": [param for param in params if param.ndim > 1], "weight_decay": 0.5},
        {"params": [param for param in params if param.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr)


class OwnAdam(torch.optim.Adam):
    """A user's optimizer, which may not be elementwise."""


class PartlyUnused(nn.Module):
    """Has a layer that trains, a layer that is never used, and a parameter without elements."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.used = nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], num_classes)
        self.unused = nn.Linear(20, 30)
        self.nothing = nn.Parameter(torch.empty(0))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.used(images.flatten(1)) + self.nothing.sum()
        return logits


class MoveWeights(Callback):
    """Moves the weights to other memory before each epoch."""

    def on_train_epoch_start(self, trainer: Any, pl_module: nn.Module) -> None:
        weights = list(pl_module.parameters())
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(weights), weights)
