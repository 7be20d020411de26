"""A callback that makes one rank fail."""

import os
import signal
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Callback


class BreakAt(Callback):
    """Fails in one rank in the middle of an epoch.

    Args:
        rank: the rank that fails.
        epoch: the epoch; -1: before the first; the number of epochs: in the test after the last.
        how: raise, or kill (SIGKILL).
        once: whether to fail only once. The file `broken` in the current folder marks the first failure.
    """

    def __init__(self, rank: int, epoch: int, how: str, once: bool = False) -> None:
        self.rank, self.epoch, self.how, self.once = rank, epoch, how, once

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == self.rank and trainer.current_epoch == self.epoch and batch_idx == 0:
            self.fail()

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        if trainer.global_rank == self.rank and self.epoch == -1:
            self.fail()

    def on_test_start(self, trainer: Any, module: Any) -> None:
        if trainer.global_rank == self.rank and trainer.max_epochs == self.epoch:
            self.fail()

    def fail(self) -> None:
        if self.once:
            if Path("broken").exists():
                return
            Path("broken").touch()
        if self.how == "raise":
            raise ValueError("broken on purpose")
        os.kill(os.getpid(), signal.SIGKILL)
