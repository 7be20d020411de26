"""Callbacks that make a run's directory unwritable before the second epoch."""

import logging
import os
import subprocess
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Callback


class _BeforeSecondEpoch(Callback):
    def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == 1:
            self.fail()

    def fail(self) -> None:
        raise NotImplementedError


class FillDisk(_BeforeSecondEpoch):
    """Fills the disk that is mounted at disk/ to its last byte, once. The file `filled` marks that it has."""

    def fail(self) -> None:
        if Path("filled").exists():
            return
        Path("filled").touch()
        with Path("disk/filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass


class MoveRunAway(_BeforeSecondEpoch):
    """Renames the run's directory, run/."""

    def fail(self) -> None:
        Path("run").rename("elsewhere")


class RemountReadOnly(_BeforeSecondEpoch):
    """Makes the disk at disk/ read-only. The system permits that only if no file is open for writing."""

    def fail(self) -> None:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                handler.close()  # the handler opens its file again for the next line
        subprocess.run(["mount", "-o", "remount,ro", os.path.realpath("disk")], check=True, timeout=60)
