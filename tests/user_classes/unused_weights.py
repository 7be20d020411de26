"""A network with a layer that is never used, so that its weights get no gradient."""

import torch
from torch import nn


class UnusedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(64, 10), nn.Linear(3, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.used(images.flatten(1))
        return logits
