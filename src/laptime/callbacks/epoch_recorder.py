"""Writes every epoch down: epochs.csv, the loggers, and one line in the log."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from laptime.callbacks.epoch_timer import EpochTimer
from laptime.classifier import Classifier
from laptime.record import append_epochs

log = logging.getLogger(__name__)

# What each column of epochs.csv is called in TensorBoard and the other loggers.
TAGS = {
    "time/epoch_s": "epoch_time_s",
    "throughput/samples_per_s": "samples_per_s",
    "train/loss": "train_loss",
    "train/accuracy": "train_accuracy",
    "val/loss": "val_loss",
    "val/accuracy": "val_accuracy",
    "lr": "lr",
    "memory/rss_bytes": "rss_bytes",
    "memory/device_bytes": "device_memory_bytes",
    "cpu/percent": "cpu_percent",
}


class EpochRecorder(Callback):
    """Writes one row per epoch, after the epoch's validation and outside its timed part.

    Args:
        timer: has the epoch's lap ready.
        run_dir: holds epochs.csv.
        attempt: how often this run was started before, from 0.
        on_row: called with every row once it is written.

    Attributes:
        rows: as written, in order.
    """

    def __init__(
        self,
        timer: EpochTimer,
        run_dir: Path,
        attempt: int = 0,
        on_row: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.timer = timer
        self.run_dir = run_dir
        self.attempt = attempt
        self.on_row = on_row
        self.rows: list[dict[str, Any]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        lap = self.timer.lap
        assert lap is not None
        validated = pl_module.val_sums.num_samples > 0
        row = {
            "attempt": self.attempt,
            "epoch": lap.epoch,
            "rank": trainer.global_rank,
            "is_warmup": lap.is_warmup,
            "epoch_time_s": lap.epoch_time_s,
            "num_samples": lap.num_samples,
            "samples_per_s": lap.samples_per_s,
            "data_wait_s": lap.data_wait_s,
            "train_loss": pl_module.train_sums.loss(),
            "train_accuracy": pl_module.train_sums.accuracy(),
            "val_loss": pl_module.val_sums.loss() if validated else None,
            "val_accuracy": pl_module.val_sums.accuracy() if validated else None,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "cpu_percent": lap.cpu_percent,
            "rss_bytes": lap.rss_bytes,
            "device_memory_bytes": lap.device_memory_bytes,
        }
        append_epochs(self.run_dir, [row])
        self.rows.append(row)
        scalars = {tag: row[column] for tag, column in TAGS.items() if row[column] is not None}
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=lap.epoch)
        log.info("%s", one_line(row, trainer.max_epochs or 0))
        if self.on_row is not None:
            self.on_row(row)


def one_line(row: dict[str, Any], epochs: int) -> str:
    """A row of epochs.csv for people."""
    parts = [
        f"epoch {row['epoch'] + 1}/{epochs}",
        f"{row['epoch_time_s']:.2f} s",
        f"{row['samples_per_s']:,.0f} samples/s",
        f"train loss {row['train_loss']:.4f}, accuracy {row['train_accuracy']:.2%}",
    ]
    if row["val_loss"] is not None and not math.isnan(row["val_loss"]):
        parts.append(f"val loss {row['val_loss']:.4f}, accuracy {row['val_accuracy']:.2%}")
    if row["is_warmup"]:
        parts.append("warm-up, not counted")
    return "  ".join(parts)
