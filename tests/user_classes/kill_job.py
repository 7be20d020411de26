"""A callback that kills the process of one job of a sweep."""

from typing import Any

import psutil
from pytorch_lightning.callbacks import Callback


class KillJob(Callback):
    """Kills the process that runs the job whose seed is 1: the parent of the server that started this rank."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1 and self.seed == 1:
            psutil.Process().parent().parent().kill()
