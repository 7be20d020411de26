"""A small network with batch norm that replaces the MLP."""

import math

import torch
from torch import nn


class BatchNormed(nn.Module):
    """One hidden layer with batch norm. It accepts and ignores the arguments of an MLP."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, **mlp_arguments: object) -> None:
        super().__init__()
        size = math.prod(input_shape)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(size, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.head = nn.Linear(32, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(images))
