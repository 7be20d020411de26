"""Callbacks that take a run's place to write away, before its second epoch."""

import logging
import os
import subprocess
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Callback


class _BeforeSecondEpoch(Callback):
    def on_train_epoch_start(self, trainer: Any, *rest: Any) -> None:
        if trainer.current_epoch == 1:
            self.fail()

    def fail(self) -> None:
        raise NotImplementedError


class FillDisk(_BeforeSecondEpoch):
    """Fills the disk that is mounted at disk/ to its last byte, once: the file `filled` says that it did."""

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
    """Makes the disk that is mounted at disk/ read-only. The system does so only where no file is open for writing."""

    def fail(self) -> None:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.FileHandler):
                handler.close()  # it opens its file anew for the next line
        subprocess.run(["mount", "-o", "remount,ro", os.path.realpath("disk")], check=True, timeout=60)
