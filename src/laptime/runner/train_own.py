"""Does one run of `task=own` in one rank: trains a LightningModule of the user's on a LightningDataModule of theirs."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.model_helpers import is_overridden

from laptime.callbacks.checkpoint import Checkpoint
from laptime.config.schema import TrainingConfig
from laptime.errors import UserError
from laptime.hooks.lightning_facts import num_samples_of, test_scores_of
from laptime.loggers.fail_safe import quiet_writer_threads
from laptime.ranks.rank import Rank
from laptime.record import schema
from laptime.record.logged_score import LoggedScore
from laptime.record.schema import filled
from laptime.runner.context import RunContext
from laptime.runner.fit import early_stopping_of, fit
from laptime.runner.own_timer import LapChecks, OwnTimer
from laptime.runner.recording import begin, make_sampler, note_memory, note_resources
from laptime.runner.trackers import log_results, tracked
from laptime.training import checkpoints, open_groups
from laptime.training.build import build_callbacks
from laptime.training.own_training import (
    LabelsCheckpoints,
    SeedsEpochs,
    StopsOnRequest,
    build_own_trainer,
    require_supported,
)
from laptime.training.trainer import is_profiled, quiet_lightning

log = logging.getLogger(__name__)


def train_own(run: RunContext, rank: Rank) -> None:
    """Train and time, and fill in the record step by step. See `laptime.runner.train.train`."""
    config, run_dir, record = run.config, run.run_dir, run.record
    settings = config.training
    device = begin(run, rank)
    pl.seed_everything(config.seed, workers=True, verbose=False)
    data: pl.LightningDataModule = open_groups.build(config, "task.data")
    module: pl.LightningModule = open_groups.build(config, "task.module")
    require_supported(config, module)
    user_callbacks = build_callbacks(config)
    _note_names(run, module, data)
    identity = checkpoints.identity(config.as_dict(), rank.world_size)
    checkpoint = None
    done = Done()
    if settings.checkpoint is not None:
        checkpoint = checkpoints.find_on_all_ranks(settings.checkpoint, rank, run_dir)
        done = Done.of(checkpoints.read_same(checkpoint, identity))
        done.require_remaining(settings, is_restarted=rank.attempt > 0)
        log.info("resuming from %s", checkpoint)
    num_done = 0 if rank.attempt else done.num_laps(settings)
    timer = OwnTimer(run, device, rank, remaining=settings.num_laps - num_done)
    checks = LapChecks(timer)
    sampler = make_sampler(config, record, device, rank)
    score = config.task.score
    early_stopping = early_stopping_of(config, user_callbacks, score.metric or "val_loss", score.direction or "min")
    for callback in user_callbacks:
        if isinstance(callback, Checkpoint) and score.metric is not None:
            callback.metric_name, callback.is_maximized = score.metric, config.score.is_maximized
    callbacks: list[Any] = [
        timer,
        checks,
        StopsOnRequest(run.stop, rank),
        SeedsEpochs(config.seed, done.num_epochs),
        LabelsCheckpoints(identity, rank),
        *user_callbacks,
        *([early_stopping] if early_stopping is not None else []),
    ]
    with quiet_lightning(), quiet_writer_threads(), tracked(run, rank, done.num_steps) as loggers:
        trainer = build_own_trainer(config, run_dir, device, rank, callbacks, loggers)
        if rank.is_first:
            log.info("writing to %s", run_dir)
        reason = fit(run, trainer, module, data, checkpoint, sampler, early_stopping)
        checks.require_timed()
        record.result.stop_reason = reason
        if is_overridden("test_dataloader", data, pl.LightningDataModule):
            _test(run, trainer, module, data)
        if timer.own_run is not None:  # restarted ranks may have died after the last epoch
            note_resources(record, timer.own_run.recorder, sampler, timer.own_run.clock.energy)
        note_memory(record, rank, device, sampler)
        if rank.is_first:
            record.write(run_dir)
        if is_profiled(config):
            log.info("breakdown and peak are not measured under a profiler")
        log_results(loggers, run, max(0, trainer.global_step - 1))


@dataclass(frozen=True)
class Done:
    """How far the run had trained that a run resumes.

    Attributes:
        num_epochs: complete passes over the data.
        num_batches, num_steps: batches of each rank, and optimizer steps.
    """

    num_epochs: int = 0
    num_batches: int = 0
    num_steps: int = 0

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> "Done":
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
        return cls(checkpoints.epochs_trained(checkpoint), batches, checkpoint["global_step"])

    def num_laps(self, settings: TrainingConfig) -> int:
        return self.num_epochs if settings.steps_per_lap is None else self.num_batches // settings.steps_per_lap

    def require_remaining(self, settings: TrainingConfig, is_restarted: bool) -> None:
        """Refuse a checkpoint that has trained as long as this run. Restarted ranks may have died after that."""
        for name, num, num_all in (
            ("epochs", self.num_epochs, settings.epochs if settings.max_steps is None else None),
            ("max_steps", self.num_steps, settings.max_steps),
        ):
            if num_all is not None and num >= num_all and not is_restarted:
                raise UserError(
                    f"training.checkpoint={settings.checkpoint}: training.{name}={num_all} is trained already. "
                    f"Set training.{name} to more than {num}."
                )


def _note_names(run: RunContext, module: pl.LightningModule, data: pl.LightningDataModule) -> None:
    record = run.record
    if record.dataset is None:  # this is no restart
        record.dataset = schema.Dataset(name=type(data).__name__.lower(), num_test=0)
        record.model = schema.Model(name=type(module).__name__.lower())
        record.batch = schema.Batch(scope="per_rank", per_rank_batch_size=None, global_batch_size=None)


def _test(run: RunContext, trainer: pl.Trainer, module: pl.LightningModule, data: pl.LightningDataModule) -> None:
    if not is_overridden("test_step", module, pl.LightningModule):
        if trainer.is_global_zero:
            log.warning("the test is skipped: %s has no test_step", type(module).__name__)
        return
    trainer.test(module, datamodule=data, verbose=False)
    score, result = run.config.task.score, run.record.result
    loss, accuracy, value = test_scores_of(trainer, LoggedScore.of(score.settings))
    result.test_loss, result.test_accuracy, result.test_score = loss, accuracy, loss if score.metric is None else value
    filled(run.record.dataset).num_test = num_samples_of(trainer.test_dataloaders)
