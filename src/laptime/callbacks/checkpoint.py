"""Saves checkpoints: last.ckpt after every epoch, previous.ckpt in case last.ckpt is damaged, and best.ckpt at the
lowest validation loss."""

import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint as LightningCheckpoint

from laptime.record.files import BEST_CHECKPOINT, CHECKPOINT_DIR, LAST_CHECKPOINT, PREVIOUS_CHECKPOINT


class Checkpoint(LightningCheckpoint):
    """Keeps last.ckpt, the one before it (previous.ckpt) and best.ckpt in the run directory's checkpoints/.

    last.ckpt exists from the start of the training, so that a run that ends in its first epoch can be resumed too.
    Lightning's ModelCheckpoint updates its last.ckpt only when the monitored metric improves; this one always does.

    Args:
        save_best: whether to keep best.ckpt too, which needs a validation set.

    Attributes:
        metric_name: the metric of best.ckpt. With `task=own` and `task.score`, it is the score's.
        is_maximized: whether higher values of it are better.
    """

    def __init__(self, save_best: bool = True) -> None:
        self.save_best = save_best
        self.metric_name = "val_loss"
        self.is_maximized = False
        self.best_val_loss = math.inf

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.ckpt_path is not None and self.save_best:
            self._copy_best(Path(trainer.ckpt_path).with_name(BEST_CHECKPOINT), self._path(trainer, BEST_CHECKPOINT))
        self._save(trainer, LAST_CHECKPOINT)

    def _copy_best(self, source: Path, target: Path) -> None:
        """Copy best.ckpt from the resumed run; without it, forget the best loss so far."""
        if source.is_file() and source != target:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        elif not source.is_file():
            self.best_val_loss = math.inf

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        has_all_steps = 0 < trainer.max_steps <= trainer.global_step  # of Trainer(max_steps=...), maybe within an epoch
        if not (trainer.is_last_batch or has_all_steps):  # cut short: runs are only resumed from complete epochs
            return
        value = trainer.callback_metrics.get(self.metric_name)
        if self.save_best and value is not None:
            loss = -float(value) if self.is_maximized else float(value)
            if loss < self.best_val_loss:
                self.best_val_loss = loss
                self._save(trainer, BEST_CHECKPOINT)
        self._save(trainer, LAST_CHECKPOINT, keep=PREVIOUS_CHECKPOINT)

    def state_dict(self) -> dict[str, Any]:
        return {"best_val_loss": self.best_val_loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_val_loss = state_dict["best_val_loss"]

    def _save(self, trainer: pl.Trainer, name: str, keep: str | None = None) -> None:
        """Replace the file atomically, so that a run that dies leaves a complete checkpoint.

        Args:
            keep: the new name of the current file; None: the file is overwritten.
        """
        path = self._path(trainer, name)
        temporary = path.with_name(f".{name}.{os.getpid()}")
        try:
            try:
                trainer.save_checkpoint(temporary)
            except RuntimeError as error:  # torch's writer doesn't tell the reason
                if "PytorchStreamWriter" not in str(error) and "file write failed" not in str(error):
                    raise
                raise OSError(None, "can't be written: is the disk full, or the file too large?", str(path)) from error
            except OSError as error:  # Lightning's writer doesn't tell the path
                error.filename = error.filename or str(path)
                raise
            if trainer.is_global_zero:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                if keep is not None and path.exists():
                    _replace_by_copy(path, path.with_name(keep))
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @staticmethod
    def _path(trainer: pl.Trainer, name: str) -> Path:
        return Path(trainer.default_root_dir) / CHECKPOINT_DIR / name


def _replace_by_copy(path: Path, other: Path) -> None:
    """Replace the file `other` by a copy of `path`, atomically."""
    temporary = path.with_name(f".{other.name}.{os.getpid()}")
    try:
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, temporary)
        temporary.replace(other)
    finally:
        temporary.unlink(missing_ok=True)
