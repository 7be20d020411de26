"""File loggers after resuming from a checkpoint: each epoch is in the files once."""

import time
from pathlib import Path

import pytest
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tests.support.logged_values import csv_values

from laptime.loggers.fail_safe import fail_safe
from laptime.loggers.resumed import resume_at

pytestmark = pytest.mark.unit


def csv_logger(resumed_at: int | None) -> CSVLogger:
    """A CSV logger in a run directory."""
    logger = CSVLogger("run", name="csv", version="")
    if resumed_at is not None:
        resume_at(logger, resumed_at)
    assert fail_safe("csv", logger) is logger
    return logger


def log(logger: CSVLogger, *epochs: int, **values: float) -> None:
    for epoch in epochs:
        logger.log_metrics({"loss": 1.0 / (1 + epoch), **values}, step=epoch)
        logger.save()


@pytest.mark.parametrize(("resumed_at", "kept"), [(2, [0, 1]), (1, [0]), (0, [])])
def test_metrics_csv_keeps_the_epochs_before_the_resumed_one(resumed_at, kept, work_folder):
    log(csv_logger(None), 0, 1)
    log(csv_logger(resumed_at), *range(resumed_at, 4))
    assert csv_values(Path("run")) == {"loss": [(epoch, 1.0 / (1 + epoch)) for epoch in range(4)]}
    log(csv_logger(resumed_at), resumed_at)  # again, from the same checkpoint
    assert [step for step, _ in csv_values(Path("run"))["loss"]] == [*kept, resumed_at]


def test_new_column_after_a_restart_is_added(work_folder):
    log(csv_logger(None), 0)
    log(csv_logger(1), 1, accuracy=0.5)
    assert csv_values(Path("run")) == {"loss": [(0, 1.0), (1, 0.5)], "accuracy": [(1, 0.5)]}


@pytest.mark.parametrize("end", ["1", "0.5,", "0.5,\xff", "\n\n"])
def test_truncated_row_is_dropped(end, work_folder):
    log(csv_logger(None), 0)
    with Path("run/csv/metrics.csv").open("a", encoding="latin-1") as file:
        file.write(end)
    log(csv_logger(1), 1)
    assert csv_values(Path("run")) == {"loss": [(0, 1.0), (1, 0.5)]}


@pytest.mark.parametrize("content", [None, "", "\n", "something else\n1\n"])
def test_unreadable_file_is_replaced(content, work_folder):
    if content is not None:
        Path("run/csv").mkdir(parents=True)
        Path("run/csv/metrics.csv").write_text(content)
    log(csv_logger(3), 3)
    assert csv_values(Path("run"))["loss"] == [(3, 0.25)]


def test_tensorboard_shows_the_last_attempt_at_an_epoch(work_folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for attempt, resumed_at in enumerate((None, 1)):
        logger = TensorBoardLogger("run", name="tensorboard", version="")
        if resumed_at is not None:
            rename_as_if_of_another_host()
            resume_at(logger, resumed_at)
        for epoch in range(resumed_at or 0, 3):
            logger.log_metrics({"loss": 10.0 * attempt + epoch}, step=epoch)
        logger.finalize("success")
    events = EventAccumulator("run/tensorboard")
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 0.0), (1, 11.0), (2, 12.0)]


def rename_as_if_of_another_host() -> None:
    """Two files of the same second sort by the names of their hosts."""
    (file,) = Path("run/tensorboard").glob("*tfevents*")
    file.rename(file.with_name(f"events.out.tfevents.{int(time.time())}.zzz.1.0"))
