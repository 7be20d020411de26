"""Networks that can't be trained, one that is only detached in evaluation, and one with lazy parameters."""

import torch
from torch import nn


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10).requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layer(images.flatten(1))
        return logits


class Detached(Frozen):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).detach()


class DetachedInEvaluation(Detached):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return Frozen.forward(self, images) if self.training else super().forward(images)


class Lazy(Frozen):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(10)
