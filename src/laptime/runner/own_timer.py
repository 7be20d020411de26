"""Times a LightningModule of the user's with LapTimer, and fills in the record of Laptime's run."""

import logging
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from laptime.config.validate import resolve_warmup_epochs
from laptime.errors import TrainingFailed
from laptime.hooks.guard import Guard
from laptime.hooks.identity import HydraJob
from laptime.hooks.lightning import LapTimer
from laptime.hooks.lightning_facts import TAGS, num_samples_of, training_of
from laptime.hooks.new_record import CONTENTS
from laptime.hooks.settings import Timer
from laptime.hooks.timed_run import TimedRun
from laptime.lap.clock import Lap
from laptime.lap.recorder import Scores
from laptime.machine.device import Device
from laptime.ranks.rank import Rank
from laptime.record.epochs import Epoch
from laptime.record.files import epoch_rows
from laptime.record.logged_score import LoggedScore
from laptime.record.run_record import RunRecord
from laptime.record.schema import RunError, Status, filled
from laptime.runner.context import RunContext
from laptime.runner.recording import note_quality, note_result
from laptime.training.trainer import is_profiled

log = logging.getLogger(__name__)


class OwnTimer(LapTimer):
    """A LapTimer that fills in the record of a run that exists already.

    Args:
        context: the run.
        device: the device that trains.
        rank: this process.
        remaining: the number of laps to train.
    """

    tags = {"time/epoch_s": "epoch_time_s"} | {tag: name for tag, name in TAGS.items() if tag != "time/lap_s"}

    def __init__(self, context: RunContext, device: Device, rank: Rank, remaining: int) -> None:
        config, is_measured = context.config, not is_profiled(context.config)
        super().__init__(
            every=config.training.steps_per_lap,
            warmup_laps=resolve_warmup_epochs(config.measure.warmup_epochs, remaining),
            config={},  # the run has its configuration
            seed=config.seed,
            breakdown=config.measure.breakdown and is_measured,
            peak=config.measure.peak and is_measured,
            score=config.task.score.settings,
        )
        self.guard = _RunGuard()
        self.context = context
        self.device = device
        self.rank = rank
        self.own_run: OwnRun | None = None

    def _start_run(self, trainer: Any, pl_module: Any) -> TimedRun:
        training = training_of(trainer, pl_module, self.settings, None)
        self.own_run = OwnRun(self.context, self.settings, training, self.device, self.rank, self.guard)
        return self.own_run

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        filled(self.context.record.dataset).num_val = num_samples_of(trainer.val_dataloaders) or None

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Do nothing: the run records the test, also if it resumed after the last epoch."""


class _RunGuard(Guard):
    """A Guard whose reasons don't advise arguments of LapTimer, because a run has no such arguments."""

    def mark_missing(self, key: str, reason: str, warn: bool = True) -> None:
        super().mark_missing(key, reason.partition(". Pass ")[0], warn)


class OwnRun(TimedRun):
    """A TimedRun that fills in a record that exists already. The code that made the record writes how the run ends.

    Args:
        context: the run.

    Attributes:
        last_lap: the last lap on this rank; None: there was none.
    """

    def __init__(self, context: RunContext, *args: Any) -> None:
        self.context = context
        self.last_lap: Lap | None = None
        self._train_s: float | None = None
        super().__init__("LapTimer", *args)
        if self.rank.attempt and self.rank.is_first:
            self.recorder.rows += epoch_rows(context.run_dir)  # keep the laps of earlier attempts

    def _start_record(self, timer: Timer, job: HydraJob | None) -> tuple[Path | None, RunRecord]:
        record, training = self.context.record, self.training
        record.lap.contents = CONTENTS
        filled(record.dataset).num_train = training.num_train
        filled(record.dataset).pipeline = "workers" if training.has_workers else None
        filled(record.model).num_parameters = training.num_parameters
        return self.context.run_dir, record

    def _say(self, line: str) -> None:
        log.info("%s", line)

    def start_lap(self, is_partial: bool = False) -> None:
        if self._started_at is None:
            startup_s = time.time() - self.context.start
            self.context.record.attempts[-1].startup_s = startup_s if startup_s >= 0 else None  # the clock was set back
        super().start_lap(is_partial)

    def write_lap(self, scores: Scores) -> tuple[Epoch, float | None] | None:
        if self._started_at is not None:
            self._train_s = time.perf_counter() - self._started_at
        self.last_lap = self._pending or self.last_lap
        if self.context.config.task.score.metric is None and self._pending is not None:  # the score is the loss
            scores = replace(scores, train_score=self._pending.loss, val_score=scores.val_loss)
        return super().write_lap(scores)

    def refresh(self) -> None:
        super().refresh()
        record, config = self.record, self.context.config
        if record is None or not self.recorder.rows:
            return
        record.attempts[-1].total_train_s = self._train_s
        totals_s = [attempt.total_train_s for attempt in record.attempts if attempt.total_train_s is not None]
        record.timing.total_train_s = sum(totals_s) if totals_s else None
        startups_s = [attempt.startup_s for attempt in record.attempts if attempt.startup_s is not None]
        record.timing.startup_s = startups_s[0] if startups_s else None
        note_result(record, self.recorder, config.score, config.measure.target)
        note_quality(record, self.recorder, self.context.runs_at_once, self.training.is_profiled)

    def end(self, status: Status, error: RunError | None = None, reason: str = "epochs") -> None:
        self.warmup.end()
        self.refresh()
        self.warmup.close()
        self._write()


class LapChecks(Callback):
    """Ends a training whose record would be wrong: it isn't timed, its loss is not finite, or it logs no score.

    Args:
        timer: times the training.
    """

    def __init__(self, timer: OwnTimer) -> None:
        self.timer = timer

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.require_timed()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.require_timed()
        self._require_score(trainer, pl_module)

    def require_timed(self) -> None:
        """Raises: TrainingFailed: the training is not timed or recorded, or a loss is infinite or not a number."""
        guard, run = self.timer.guard, self.timer.own_run
        reason = guard.off_reason or guard.missing.get("epochs.csv") or guard.missing.get("run.json")
        if reason is not None and reason:
            raise TrainingFailed(f"the training can't be timed: {reason}")
        lap = None if run is None else run.last_lap
        if lap is not None and lap.loss is not None and not math.isfinite(lap.loss):
            raise TrainingFailed(f"the training loss became {lap.loss} in lap {lap.number}, counted from 0", lap.number)

    def _require_score(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        score = self.timer.context.config.task.score
        metrics = sorted(map(str, trainer.callback_metrics))
        names = LoggedScore.of(score.settings).all_names
        if score.metric is not None and not any(name in metrics for name in names):
            logged = f"It logs {', '.join(metrics)}" if metrics else "It logs nothing"
            raise TrainingFailed(
                f"task.score.metric={score.metric}: {type(pl_module).__name__} has not logged it. {logged}."
            )
