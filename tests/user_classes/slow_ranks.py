"""A network that is slow in one rank and replaces the MLP."""

import time

import torch
import torch.distributed as dist

from laptime.models.mlp import MLP


class SlowInRankOne(MLP):
    """Sleeps for a tenth of a second in each forward pass of training in rank 1."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training and dist.is_initialized() and dist.get_rank() == 1:
            time.sleep(0.1)
        return super().forward(images)
