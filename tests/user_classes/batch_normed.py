"""A small network with batch norm, in place of the multilayer perceptron."""

import math

import torch
from torch import nn


class BatchNormed(nn.Module):
    """One hidden layer with batch norm. It takes an MLP's arguments too, and ignores them."""

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, **of_an_mlp: object) -> None:
        super().__init__()
        size = math.prod(input_shape)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(size, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.head = nn.Linear(32, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(images))
