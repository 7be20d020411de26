"""Records every epoch of Laptime's own training in epochs.csv, in the loggers, and in a line of the log."""

import logging
import math
from collections.abc import Callable
from operator import attrgetter
from typing import Protocol, runtime_checkable

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from laptime.lap.epoch_sums import Means, Sums
from laptime.lap.epoch_timer import EpochTimer
from laptime.lap.recorder import LapRecorder, Scores, scalars_of
from laptime.record.epochs import Epoch
from laptime.record.score import ACCURACY, Score

log = logging.getLogger(__name__)

# The tags of an epoch's figures in TensorBoard and the other loggers, with the attribute of Epoch for each; without
# those of the score.
_TAGS = {
    "time/epoch_s": "epoch_time_s",
    "time/straggler_delay": "straggler_delay",
    "throughput/samples_per_s": "samples_per_s",
    "throughput/tokens_per_s": "tokens_per_s",
    "train/loss": "train_loss",
    "val/loss": "val_loss",
    "lr": "lr",
    "memory/rss_bytes": "rss_bytes",
    "memory/device_bytes": "device_memory_bytes",
    "cpu/percent": "cpu_percent",
}


@runtime_checkable
class CountsSamples(Protocol):
    """A module that counts the samples it trains on.

    Attributes:
        train_sums: sums of this epoch so far, on this rank.
        val_means: means of the last validation over all ranks; None: there was none.
    """

    train_sums: Sums
    val_means: Means | None


class EpochRecorder(Callback):
    """Passes every epoch to the LapRecorder and logs it, after its validation and outside its timed part.

    Args:
        timer: provides the epoch's lap.
        laps: writes the laps.
        on_epoch: called on rank 0 after an epoch was written.
        score: the score of the task.
        score_of: returns the score of means over an epoch; None: not measured.
        lap_word: what an epoch is, for messages: `epoch`, or `lap` if it is a number of steps.
    """

    def __init__(
        self,
        timer: EpochTimer,
        laps: LapRecorder,
        on_epoch: Callable[[], None],
        score: Score = ACCURACY,
        score_of: Callable[[Means], float | None] = attrgetter("accuracy"),
        lap_word: str = "epoch",
    ) -> None:
        self.timer = timer
        self.laps = laps
        self.rank = laps.rank
        self.on_epoch = on_epoch
        self.score = score
        self.score_of = score_of
        self.lap_word = lap_word

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, CountsSamples)
        lap = self.timer.lap
        if lap is None:
            log.warning("%s %d was cut short and is not recorded", self.lap_word, trainer.current_epoch + 1)
            return
        train, val = pl_module.train_sums.means(self.rank), pl_module.val_means
        scores = Scores(
            train_loss=train.loss,
            train_accuracy=train.accuracy,
            val_loss=val.loss if val is not None else None,
            val_accuracy=val.accuracy if val is not None else None,
            train_score=self.score_of(train),
            val_score=self.score_of(val) if val is not None else None,
            lr=trainer.optimizers[0].param_groups[0]["lr"],
        )
        rank_laps = self.rank.gather(self.laps.rank_lap(lap, scores))
        epoch = self.laps.add(lap, rank_laps)
        if not self.rank.is_first:
            return
        scalars = scalars_of(epoch, tags_of(self.score), self.laps.joules(rank_laps))
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=lap.number)
            logger.save()  # otherwise metrics would be lost if the process dies
        log.info("%s", one_line(epoch, trainer.max_epochs or 0, self.score, self.lap_word))
        self.on_epoch()


def tags_of(score: Score) -> dict[str, str]:
    """Return the attribute of Epoch for each tag. A score named `loss` has no tags besides those of the loss."""
    return {f"train/{score.tag}": "train_score", f"val/{score.tag}": "val_score"} | _TAGS


def one_line(epoch: Epoch, num_epochs: int, score: Score, lap_word: str = "epoch") -> str:
    """Return the line of the log that reports an epoch (or lap)."""
    parts = [
        f"{lap_word} {epoch.epoch + 1}/{num_epochs}",
        f"{epoch.epoch_time_s:.2f} s",
        f"{epoch.samples_per_s or 0.0:,.0f} samples/s"
        if epoch.tokens_per_s is None
        else f"{epoch.tokens_per_s:,.0f} tokens/s",
        f"train loss {epoch.train_loss:.4f}{_score_words(epoch.train_score, score)}",
    ]
    if epoch.val_loss is not None and not math.isnan(epoch.val_loss):
        parts.append(f"val loss {epoch.val_loss:.4f}{_score_words(epoch.val_score, score)}")
    if epoch.is_warmup:
        parts.append("warm-up, not counted")
    return "  ".join(parts)


def _score_words(value: float | None, score: Score) -> str:
    return "" if value is None else f", {score.name} {score.number(value)}"
