"""Writes every epoch down: epochs.csv, the loggers, and one line in the log."""

import logging
import math
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Protocol, runtime_checkable

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from laptime.lap.epoch_sums import Means, Sums
from laptime.lap.epoch_timer import EpochTimer
from laptime.machine.counters import between, percent_by_core
from laptime.ranks.rank import Rank
from laptime.record.epochs import Epoch, EpochRow, over_ranks
from laptime.record.files import append_epochs
from laptime.record.schema import EpochNoise

log = logging.getLogger(__name__)

# What each figure of an epoch is called in TensorBoard and the other loggers.
TAGS = {
    "time/epoch_s": "epoch_time_s",
    "time/straggling": "straggling",
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


@runtime_checkable
class CountsSamples(Protocol):
    """A module that sums up what it trains on.

    Attributes:
        train_sums: of this epoch so far, on this rank.
        val_means: of the last validation, over all ranks; None: there was none.
    """

    train_sums: Sums
    val_means: Means | None


class EpochRecorder(Callback):
    """Writes one row per epoch and rank, after the epoch's validation and outside its timed part.

    Args:
        timer: has the epoch's lap ready.
        run_dir: holds epochs.csv.
        rank: this process; the first one writes for all.
        on_epoch: called on the first rank once an epoch's rows are written.

    Attributes:
        rows: of all ranks, as written, in order; on every rank.
        num_steps: optimizer steps of every counted epoch that this process has trained.
        noise: of every epoch, what else this machine did meanwhile; on the first rank.
        energy_joules: of every counted epoch in which all machines were measured; on the first rank.
        percent_by_core: of every counted epoch how busy each core of this machine was, by whomever; on the first rank.
    """

    def __init__(self, timer: EpochTimer, run_dir: Path, rank: Rank, on_epoch: Callable[[], None]) -> None:
        self.timer = timer
        self.run_dir = run_dir
        self.rank = rank
        self.on_epoch = on_epoch
        self.rows: list[EpochRow] = []
        self.num_steps: list[int] = []
        self.noise: list[EpochNoise] = []
        self.energy_joules: list[float] = []
        self.percent_by_core: list[list[float]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, CountsSamples)
        lap = self.timer.lap
        if lap is None:
            log.warning("epoch %d was broken off and is not recorded", trainer.current_epoch + 1)
            return
        train, val = pl_module.train_sums.means(self.rank), pl_module.val_means
        own = EpochRow(
            attempt=self.rank.attempt,
            epoch=lap.epoch,
            rank=self.rank.rank,
            is_warmup=lap.is_warmup,
            epoch_time_s=lap.epoch_time_s,
            num_samples=lap.num_samples,
            samples_per_s=lap.samples_per_s,
            data_wait_s=lap.data_wait_s,
            train_loss=train.loss,
            train_accuracy=train.accuracy,
            val_loss=val.loss if val is not None else None,
            val_accuracy=val.accuracy if val is not None else None,
            lr=trainer.optimizers[0].param_groups[0]["lr"],
            cpu_percent=lap.cpu_percent,
            rss_bytes=lap.rss_bytes,
            device_memory_bytes=lap.device_memory_bytes,
        )
        gathered = self.rank.gather((own, self.rank.node, lap.cpu_s, lap.energy_joules))
        rows = [row for row, _, _, _ in gathered]
        self.rows += rows
        if not lap.is_warmup:
            self.num_steps.append(lap.num_steps)
        if not self.rank.is_first:
            return
        cpu_s = sum(cpu_s for _, node, cpu_s, _ in gathered if node == self.rank.node)
        meanwhile = between(lap.before, lap.after, cpu_s, os.cpu_count() or 1)
        self.noise.append(
            EpochNoise(attempt=self.rank.attempt, epoch=lap.epoch, is_warmup=lap.is_warmup, **asdict(meanwhile))
        )
        if not lap.is_warmup:
            self.percent_by_core.append(percent_by_core(lap.before, lap.after))
        append_epochs(self.run_dir, rows)
        epoch = over_ranks(rows)
        joules = [each for *_, each in gathered if each is not None]
        if len(joules) == self.rank.num_nodes and not lap.is_warmup:
            self.energy_joules.append(sum(joules))
        scalars = {tag: value for tag, name in TAGS.items() if (value := getattr(epoch, name)) is not None}
        if len(joules) == self.rank.num_nodes:
            scalars["energy/joules"] = sum(joules)
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=lap.epoch)
            logger.save()  # what is only kept in memory would be lost with this process
        log.info("%s", one_line(epoch, trainer.max_epochs or 0))
        self.on_epoch()


def one_line(epoch: Epoch, num_epochs: int) -> str:
    """An epoch for people."""
    parts = [
        f"epoch {epoch.epoch + 1}/{num_epochs}",
        f"{epoch.epoch_time_s:.2f} s",
        f"{epoch.samples_per_s:,.0f} samples/s",
        f"train loss {epoch.train_loss:.4f}, accuracy {epoch.train_accuracy:.2%}",
    ]
    if epoch.val_loss is not None and not math.isnan(epoch.val_loss):
        parts.append(f"val loss {epoch.val_loss:.4f}, accuracy {epoch.val_accuracy:.2%}")
    if epoch.is_warmup:
        parts.append("warm-up, not counted")
    return "  ".join(parts)
