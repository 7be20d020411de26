"""Builds the loggers of a run, and tells experiment trackers (MLflow, W&B, ...) when the run starts and ends."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytorch_lightning as pl
from msgspec import structs
from pytorch_lightning.loggers import Logger

from laptime.config import targets
from laptime.config.schema import Config
from laptime.errors import Interrupted
from laptime.loggers.fail_safe import fail_safe
from laptime.loggers.resumed import resume_at
from laptime.loggers.tracker import Run, Tracker
from laptime.ranks.rank import Rank
from laptime.record import files as records
from laptime.runner.context import RunContext
from laptime.training import open_groups


def _build_loggers(config: Config, resumed_at: int | None) -> list[Logger]:
    """Build the configured loggers.

    Args:
        resumed_at: the first epoch that the resumed run trains; None: the run is new.
    """
    loggers = []
    for key, _ in open_groups.entries(config, "logger"):
        logger = open_groups.build(config, key)
        if resumed_at is not None:
            resume_at(logger, resumed_at)
        loggers.append(fail_safe(key.partition(".")[2], logger))
    return [logger for logger in loggers if logger is not None]


def end_trackers(run: RunContext, status: str) -> None:
    """Tell the trackers how a run ended, if its first rank was killed before it could tell them.

    Args:
        status: `failed` or `interrupted`.
    """
    for key, node in open_groups.entries(run.config, "logger"):
        if not getattr(targets.locate(key, node), "stays_open_after_crash", False):
            continue
        tracker = fail_safe(key.partition(".")[2], targets.build(key, node, Tracker))
        if isinstance(tracker, Tracker):
            tracker.begin(_tracked_run(run))
            tracker.end(status)


@contextmanager
def tracked(run: RunContext, rank: Rank, num_done: int) -> Iterator[list[Logger]]:
    """Yield the loggers on the first rank, none on other ranks. Tell trackers when the run begins and how it ended.

    Args:
        num_done: the number of epochs that are trained already.
    """
    config = run.config
    loggers = _build_loggers(config, num_done if num_done or rank.attempt else None) if rank.is_first else []
    trackers = [logger for logger in loggers if isinstance(logger, Tracker)]
    status = "failed"
    try:
        for tracker in trackers:
            tracker.begin(_tracked_run(run))
        for logger in loggers:
            if not isinstance(logger, pl.loggers.TensorBoardLogger):  # it gets them at the end, with the results
                _log_settings(logger, run)
        yield loggers
        status = "completed"
    except (Interrupted, KeyboardInterrupt):
        status = "interrupted"
        raise
    finally:
        for tracker in trackers:
            tracker.end(status)
            tracker.release()


def _log_settings(logger: Logger, run: RunContext) -> None:
    log_hyperparams: Callable[..., None] = logger.log_hyperparams
    log_hyperparams(_settings(run))


def _settings(run: RunContext) -> dict[str, bool | int | float | str]:
    """Return the run's settings for loggers, by full key."""
    return records.flat_config(run.config.as_dict()) | run.record.sweep_settings


def _tracked_run(run: RunContext) -> Run:
    label = None if run.sweep is None else run.sweep.label
    return Run.of(run.run_dir, run.record.started_at or "", run.record.git.commit, label)


def log_results(loggers: list[Logger], run: RunContext, last_epoch: int) -> None:
    """Log the results of the run."""
    record = run.record
    figures = structs.asdict(record.result) | structs.asdict(record.timing)
    metrics = {tag: figures[key] for tag, key in records.hparam_metrics(record.score).items()}
    hparam_metrics = {name: value for name, value in metrics.items() if value is not None}
    last_values: dict[str, float | None] = {
        f"test/{record.score.tag}": record.result.test_score,
        "test/loss": record.result.test_loss,
    }
    sections = {
        "comm": record.communication,
        "contention": record.contention,
        "breakdown": record.breakdown,
        "peak": record.peak,
        "bare_loop": record.bare_loop,
    }
    for tag, section in sections.items():
        values = structs.asdict(section)
        last_values |= {f"{tag}/{name}": value for name, value in values.items() if isinstance(value, int | float)}
    for logger in loggers:
        with suppress(OSError):  # the logger has logged a warning
            _log_result(logger, run, hparam_metrics, last_values, last_epoch)


def _log_result(
    logger: Logger, run: RunContext, hparam_metrics: dict[str, Any], last_values: dict[str, Any], last_epoch: int
) -> None:
    if last_values := {name: value for name, value in last_values.items() if value is not None}:
        logger.log_metrics(last_values, step=last_epoch)
    if isinstance(logger, pl.loggers.TensorBoardLogger) and run.sweep is None:
        log_hyperparams: Callable[..., None] = logger.log_hyperparams
        log_hyperparams(_settings(run), hparam_metrics)  # also writes the metrics
    else:
        logger.log_metrics(hparam_metrics, step=last_epoch)
    if isinstance(logger, pl.loggers.TensorBoardLogger) and run.sweep is not None:
        # The report of the sweep writes the settings that differ and the metrics for all runs.
        from torch.utils.tensorboard.summary import hparams

        _, *session = hparams(_settings(run), hparam_metrics)
        for summary in session:
            logger.experiment._get_file_writer().add_summary(summary)
    logger.finalize("success")
