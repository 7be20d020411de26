"""A callback that changes the weights outside of the optimizer."""

from typing import Any

import torch
from pytorch_lightning.callbacks import Callback


class ScaleWeights(Callback):
    """Halves all weights at the start of each epoch."""

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        with torch.no_grad():
            for weight in module.network.parameters():
                weight.mul_(0.5)
