"""Trains with a Trainer until the last epoch, or until something stops the training."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EarlyStopping

from laptime.config.schema import Config
from laptime.data.datamodule import DataModule
from laptime.errors import Interrupted
from laptime.measure.sampler import Sampler
from laptime.ranks.stopping import TimeLimitReached
from laptime.runner.context import RunContext
from laptime.training.build import keep_configured_patience

log = logging.getLogger(__name__)


def early_stopping_of(
    config: Config, user_callbacks: Sequence[Callback], monitor: str = "val_loss", mode: str = "min"
) -> EarlyStopping | None:
    """Return the callback of `training.early_stopping_patience`, and keep the configured patience of all others.

    Args:
        monitor: the metric that must improve.
        mode: whether lower or higher values of it are better: min or max.
    """
    patience = config.training.early_stopping_patience
    early_stopping = None if patience is None else EarlyStopping(monitor, patience=patience, mode=mode)
    for callback in [*user_callbacks, early_stopping]:
        if isinstance(callback, EarlyStopping):
            keep_configured_patience(callback)
    return early_stopping


def fit(
    run: RunContext,
    trainer: pl.Trainer,
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    checkpoint: Path | None,
    sampler: Sampler | None,
    early_stopping: EarlyStopping | None,
) -> str:
    """Train until the last epoch, or until something stops the training.

    Returns:
        The reason for the end, for `result.stop_reason`: epochs (as configured, also with max_steps), early_stopping,
        callback or time_limit.

    Raises:
        Interrupted: a signal arrived, even if Lightning or a data worker raised something else because of it.
    """
    settings, stop, max_epochs = run.config.training, run.stop, trainer.max_epochs
    try:
        stop.immediate = False
        stop.limit(settings.time_limit_s)
        if sampler is not None:
            sampler.start()
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        if stop.signum is not None:
            stop.act()
        if trainer.should_stop:
            if early_stopping is not None and early_stopping.stopped_epoch:
                patience = settings.early_stopping_patience
                laps = f"{settings.lap_word}s"
                log.info("stopped early: %s has not improved for %s %s", early_stopping.monitor, patience, laps)
                return "early_stopping"
            log.info("stopped early: a callback requested it")
            return "callback"
        if trainer.max_epochs != max_epochs:
            log.info("a callback set trainer.max_epochs=%s", trainer.max_epochs)
            return "callback"
        return "epochs"
    except TimeLimitReached:
        limit_s, word = settings.time_limit_s, settings.lap_word
        log.info("stopped by training.time_limit_s=%s; the incomplete %s is not recorded", limit_s, word)
        return "time_limit"
    except BaseException as error:
        if stop.signum is not None and not isinstance(error, Interrupted):
            raise Interrupted(stop.signum) from error
        raise
    finally:
        stop.limit(None)
        stop.expired = False
        if isinstance(data, DataModule):
            data.teardown("fit")
        if sampler is not None:
            sampler.stop()
        stop.immediate = True
