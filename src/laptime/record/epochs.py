"""Rows of epochs.csv, and how the rows of all ranks are combined.

The epoch time of a run is that of its slowest rank. If several attempts trained an epoch, the last one counts.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING

from laptime.record.score import Score

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class EpochRow:
    """A row of epochs.csv: one epoch on one rank, or one lap if laps are numbers of batches.

    Attributes:
        attempt, epoch, rank: indices from 0.
        is_warmup: whether the epoch is excluded from timing figures.
        epoch_time_s: wall time of the training part of the epoch.
        num_samples, samples_per_s: figures of this rank only; None: the samples can't be counted.
        data_wait_s: time spent waiting for batches.
        train_loss, train_accuracy, val_loss, val_accuracy: means over all ranks.
        train_score, val_score: the run's score (`result.score` in run.json) over all ranks.
        lr: learning rate of the first parameter group at the end of the epoch.
        cpu_percent: CPU use in percent of one core.
        rss_bytes, device_memory_bytes: peak memory until the end of the epoch.
        num_tokens, num_batches: counts of this rank only; None: no text, or not counted.
        apart_s: excluded time, e.g. for validation or checkpoints; None: not measured.
    """

    attempt: int
    epoch: int
    rank: int
    is_warmup: bool
    epoch_time_s: float
    num_samples: int | None
    samples_per_s: float | None
    data_wait_s: float
    train_loss: float | None
    train_accuracy: float | None
    val_loss: float | None
    val_accuracy: float | None
    lr: float | None
    cpu_percent: float
    rss_bytes: int
    device_memory_bytes: int | None
    num_tokens: int | None = None
    num_batches: int | None = None
    apart_s: float | None = None
    train_score: float | None = None
    val_score: float | None = None


EPOCH_COLUMNS = tuple(field.name for field in fields(EpochRow))
# Columns that files of older versions lack.
NEW_COLUMNS = tuple(field.name for field in fields(EpochRow) if field.default is not MISSING)


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch over all ranks, with the slowest rank's time and wait, and the sums of samples, CPU use and memory.

    Attributes:
        straggler_delay: how much longer the slowest rank took than the median one, as a fraction; None: a single rank.
    """

    epoch: int
    is_warmup: bool
    epoch_time_s: float
    straggler_delay: float | None
    num_samples: int | None
    samples_per_s: float | None
    data_wait_s: float
    train_loss: float | None
    train_accuracy: float | None
    val_loss: float | None
    val_accuracy: float | None
    lr: float | None
    cpu_percent: float
    rss_bytes: int
    device_memory_bytes: int | None
    num_tokens: int | None = None
    num_batches: int | None = None
    apart_s: float | None = None
    train_score: float | None = None
    val_score: float | None = None

    @property
    def tokens_per_s(self) -> float | None:
        return None if self.num_tokens is None else self.num_tokens / self.epoch_time_s


def combine_ranks(rows: Sequence[EpochRow]) -> Epoch:
    """Combine the rows of one epoch.

    Args:
        rows: one row per rank, all from one epoch and one attempt.
    """
    first, times = rows[0], [row.epoch_time_s for row in rows]
    epoch_time_s, num_samples = max(times), _total(row.num_samples for row in rows)
    device_memory = [row.device_memory_bytes for row in rows if row.device_memory_bytes is not None]
    return Epoch(
        epoch=first.epoch,
        is_warmup=first.is_warmup,
        epoch_time_s=epoch_time_s,
        straggler_delay=epoch_time_s / statistics.median(times) - 1 if len(rows) > 1 else None,
        num_samples=num_samples,
        samples_per_s=None if num_samples is None else num_samples / epoch_time_s,
        data_wait_s=max(row.data_wait_s for row in rows),
        train_loss=first.train_loss,
        train_accuracy=first.train_accuracy,
        val_loss=first.val_loss,
        val_accuracy=first.val_accuracy,
        train_score=first.train_score,
        val_score=first.val_score,
        lr=first.lr,
        cpu_percent=sum(row.cpu_percent for row in rows),
        rss_bytes=sum(row.rss_bytes for row in rows),
        device_memory_bytes=sum(device_memory) if device_memory else None,
        num_tokens=_total(row.num_tokens for row in rows),
        num_batches=max((row.num_batches for row in rows if row.num_batches is not None), default=None),
        apart_s=max((row.apart_s for row in rows if row.apart_s is not None), default=None),
    )


def _total(counts: Iterable[int | None]) -> int | None:
    """Return the sum over all ranks; None: a rank has no count."""
    values = list(counts)
    return None if None in values else sum(count for count in values if count is not None)


def combine_rows(rows: Iterable[EpochRow]) -> list[Epoch]:
    """Return the epochs of a run, in order, from the rows of all ranks and attempts."""
    by_epoch: dict[int, dict[int, list[EpochRow]]] = {}
    for row in rows:
        by_epoch.setdefault(row.epoch, {}).setdefault(row.attempt, []).append(row)
    return [combine_ranks(attempts[max(attempts)]) for _, attempts in sorted(by_epoch.items())]


def time_to_score(
    epochs: Iterable[tuple[float, float | None]], score: Score, target: float, first_epoch: int = 0
) -> float | None:
    """Return the seconds of training, including warm-up, until the validation score first reached the target.

    Args:
        epochs: the seconds of training until the end of each epoch, and its validation score (None or NaN: not
            measured), in order.
        score: the score, whose direction decides what reaches the target.
        target: the value to reach.
        first_epoch: number of the first of these epochs, from 0.

    Returns:
        The seconds; None: the target was never reached, or the run was resumed and the time before is not known.
    """
    if first_epoch > 0:
        return None
    reached = (elapsed_s for elapsed_s, value in epochs if value is not None and score.has_reached(value, target))
    return next(reached, None)


def last_attempts(epochs: "pd.DataFrame", by: Sequence[str] = ("epoch",)) -> "pd.DataFrame":
    """Return the rows of epochs.csv that count. For each epoch, the last attempt that trained it counts.

    Args:
        by: the columns that identify an epoch. They include `run` if there are several runs.
    """
    return epochs[epochs["attempt"] == epochs.groupby(list(by))["attempt"].transform("max")]


def combine_ranks_frame(rows: "pd.DataFrame", by: Sequence[str] = ("epoch",)) -> "pd.DataFrame":
    """Combine the ranks like `combine_ranks`, for a frame with many epochs.

    Args:
        rows: the rows of epochs.csv that `last_attempts` returns.
        by: the columns that identify an epoch.

    Returns:
        One row per epoch, with index `by`: is_warmup, epoch_time_s, num_samples, samples_per_s.
    """
    grouped = rows.groupby(list(by))
    epochs = grouped[["is_warmup", "epoch_time_s"]].max()
    is_known = grouped["num_samples"].count() == grouped.size()
    epochs["num_samples"] = grouped["num_samples"].sum().where(is_known)
    epochs["samples_per_s"] = epochs["num_samples"] / epochs["epoch_time_s"]
    return epochs
