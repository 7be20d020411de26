"""Callbacks that send a signal to their own process: one of Lightning's, one of Hydra's."""

import os
from typing import Any

from hydra.experimental.callback import Callback as HydraCallback
from pytorch_lightning.callbacks import Callback


class SignalAt(Callback):
    """Sends a signal to this process after a batch of an epoch, both counted from 0."""

    def __init__(self, signum: int, epoch: int, batch: int) -> None:
        self.signum, self.epoch, self.batch = signum, epoch, batch

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == self.epoch and batch_idx == self.batch:
            os.kill(os.getpid(), self.signum)


class SignalBeforeTheFirstRun(HydraCallback):
    """Sends a signal after the start of the sweep and before its first run."""

    def __init__(self, signum: int) -> None:
        self.signum = signum

    def on_multirun_start(self, config: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), self.signum)
