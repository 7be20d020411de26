"""Callbacks that end or kill the processes of a run."""

import multiprocessing
import os
import signal
import sys
from typing import Any

import psutil
from pytorch_lightning.callbacks import Callback


class TerminateAt(Callback):
    """Sends the run's own process SIGTERM before an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            os.kill(os.getpid(), signal.SIGTERM)


class KillDataWorkers(Callback):
    """Kills all processes that load data, in the second epoch."""

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == 1:
            for worker in multiprocessing.active_children():
                worker.kill()


class KillWandb(Callback):
    """Kills W&B's own process before an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == self.epoch:
            (service,) = [child for child in psutil.Process().children() if child.name() == "wandb-core"]
            service.kill()
            service.wait(60)


class Exit(Callback):
    """Ends the process with exit code 0."""

    def on_train_epoch_end(self, *_: Any) -> None:
        sys.exit(0)
