"""Reads run directories. Completed runs become a Run; the others are listed with the reason why they are skipped."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from laptime.record import schema
from laptime.record.directory import owner_is_gone
from laptime.record.epochs import EPOCH_COLUMNS, combine_ranks_frame, last_attempts
from laptime.record.files import (
    EARLIER_DIR,
    EPOCHS_FILE,
    RUN_FILE,
    SCORE_COLUMNS,
    SWEEP_FILE,
    DamagedRecord,
    read_epochs,
    read_record,
)
from laptime.record.laps import num_laps
from laptime.record.run_record import RunRecord
from laptime.record.schema import filled
from laptime.record.score import ACCURACY
from laptime.record.walk import walk
from laptime.text import escape_control_chars

# Folders that Laptime writes into the directory of a run or a sweep. They contain no runs.
_DIRS_INSIDE_RUNS = {"summary", "tensorboard", "checkpoints", EARLIER_DIR}
_SKIPPED_DIRS = {".git", "__pycache__"}


@dataclass(frozen=True)
class Run:
    """A completed run.

    Attributes:
        path: the directory of the run.
        record: its record, in which the fields in `_REQUIRED_FIELDS` are set.
        ranks: valid rows of epochs.csv, one per epoch and rank.
        epochs: one row per epoch, in order: epoch, is_warmup, epoch_time_s (the slowest rank's), num_samples (of all
            ranks), samples_per_s, elapsed_s (training time until its end), train_loss, train_accuracy, train_score,
            val_loss, val_accuracy, val_score.
        remarks: problems with its figures.
    """

    path: Path
    record: RunRecord
    ranks: pd.DataFrame
    epochs: pd.DataFrame
    remarks: tuple[str, ...] = ()

    @property
    def seed(self) -> int | None:
        """The seed; None: unknown, e.g. because Laptime only timed the training."""
        return self.record.seed

    @property
    def group_hash(self) -> str:
        return filled(self.record.group_hash)

    @property
    def command(self) -> list[str]:
        """The command line that started the run."""
        return filled(self.record.command)

    @property
    def full_config(self) -> Mapping[str, Any]:
        """The recorded configuration, nested. It has the user's keys if Laptime only timed the training."""
        return self.record.config or {}

    @property
    def laptime_config(self) -> Mapping[str, Any]:
        """The recorded configuration if Laptime ran the training; otherwise empty."""
        return self.record.laptime_config

    @property
    def device(self) -> schema.Device:
        return filled(self.record.device)

    @property
    def dataset(self) -> schema.Dataset:
        return filled(self.record.dataset)

    @property
    def model(self) -> schema.Model:
        return filled(self.record.model)

    @property
    def strategy(self) -> schema.Strategy:
        return filled(self.record.strategy)

    @property
    def batch(self) -> schema.Batch:
        return filled(self.record.batch)

    @property
    def environment(self) -> schema.Environment:
        return filled(self.record.environment)

    @cached_property
    def counted(self) -> pd.DataFrame:
        """The epochs after the warm-up, which timing figures are computed from."""
        return self.epochs[~self.epochs["is_warmup"]]

    @property
    def is_resumed(self) -> bool:
        """Whether the run resumed from a checkpoint, so that another run trained its first epochs."""
        return bool(self.epochs["epoch"].iloc[0] > 0)

    @property
    def config(self) -> Mapping[str, object]:
        """The settings that can change the result or the timing, by full key."""
        return self.record.hashed_config or {}


@dataclass(frozen=True)
class Skipped:
    """A run directory that the analysis can't use."""

    path: Path
    reason: str


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """Return all run directories in and below the folders, without duplicates, following symbolic links.

    They are sorted by path, with numbers by value.
    """
    run_dirs: dict[Path, Path] = {}
    for folder in folders:
        for path, names, files in walk(folder):
            is_run = RUN_FILE in files or ".hydra" in names
            if is_run:
                run_dirs.setdefault(path.resolve(), path)
            excluded = _SKIPPED_DIRS | _DIRS_INSIDE_RUNS if is_run or SWEEP_FILE in files else _SKIPPED_DIRS
            names[:] = [name for name in names if name not in excluded]
    return sorted(run_dirs.values(), key=path_sort_key)


def _identity(record: RunRecord) -> tuple[str, ...] | None:
    """Return the values that identify a run: its directory, start time, process ids and host.

    None means that an old record has no such values.
    """
    # Two LapTimers in one training differ in their laps.
    where = record.run_dir if record.is_laptime_training else (record.config_hash, record.lap)
    started = [where, record.started_at, filled(record.strategy).rank_pids]
    return None if None in started else (*map(str, started), filled(record.environment).hostname_hash)


def load_runs(folders: Iterable[Path]) -> tuple[list[Run], list[Skipped]]:
    """Read all run directories in and below the folders."""
    read: list[tuple[Path, RunRecord, pd.DataFrame]] = []
    skipped: list[Skipped] = []
    first: dict[tuple[str, ...], Path] = {}
    for path in find_runs(folders):
        try:
            record = _read_record(path)
            identity = _identity(record)
            if identity is not None and first.setdefault(identity, path) is not path:
                skipped.append(Skipped(path, f"a copy of {escape_control_chars(str(first[identity]))}"))
                continue
            rows = _read_rows(path)
            if record.score == ACCURACY:  # files of older versions have no columns of the score
                rows = rows.assign(**{score: rows[accuracy] for score, accuracy in SCORE_COLUMNS.items()})
            if not record.is_laptime_training and (rows.groupby("rank")["num_samples"].count() == 0).any():
                raise ValueError(f"samples were not counted (pass samples= to {record.lap.timer})")
            read.append((path, record, rows))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            skipped.append(Skipped(path, _reason(error)))
    runs = []
    for (path, record, _), (ranks, epochs, num_torn) in zip(read, _tidy(read), strict=True):
        lap = record.lap_word
        if epochs.empty:
            skipped.append(Skipped(path, f"{EPOCHS_FILE} has no complete {lap}"))
        elif epochs["is_warmup"].all():
            skipped.append(Skipped(path, f"no {lap} after the warm-up"))
        else:
            remarks = [f"{num_torn} rows of {EPOCHS_FILE} can't be read"] if num_torn else []
            num_missing = _num_missing(record, epochs)
            if num_missing > 0:
                remarks.append(f"{EPOCHS_FILE} lacks {num_missing} of the run's {lap}s")
            elif num_missing < 0:
                remarks.append(f"{EPOCHS_FILE} has {-num_missing} {lap}s more than the run trained")
            runs.append(Run(path, record, ranks, epochs, tuple(remarks)))
    return runs, sorted(skipped, key=lambda directory: path_sort_key(directory.path))


# Fields that every completed run has. Runs of Laptime's own training have a seed too.
_REQUIRED_FIELDS = (
    "config_hash", "group_hash", "command", "device", "dataset", "model", "strategy", "batch", "environment",
)  # fmt: skip


def _read_record(path: Path) -> RunRecord:
    """Read run.json of a completed run.

    Raises:
        OSError, ValueError: the run is not complete, or its record can't be used; the message says why.
    """
    if not (path / RUN_FILE).exists():
        raise ValueError(f"has no {RUN_FILE}: it ended before training started")
    content = read_record(path)
    if content.get("status") == "completed" and content.get("hashed_config") is None:
        raise ValueError("was written by an older version of Laptime, whose records can't be compared")
    record = RunRecord.of(content)
    if record.status != "completed":
        why = "" if record.error is None else record.error.first_line
        if record.status == "running" and owner_is_gone(path):
            raise ValueError("running, but its process is gone (killed?)")
        raise ValueError(f"{record.status}: {why}" if why else record.status)
    for name in ("seed", *_REQUIRED_FIELDS) if record.is_laptime_training else _REQUIRED_FIELDS:
        if getattr(record, name) is None:
            raise ValueError(_missing_field(name))
    if not record.is_laptime_training:
        return record
    config = record.config or {}
    if not isinstance(config.get("measure"), dict):
        raise ValueError(_missing_field("config.measure"))
    if not isinstance(config.get("training", {}), dict):
        raise ValueError(f"damaged: config.training is {str(config['training'])[:40]}")
    return record


def _read_rows(path: Path) -> pd.DataFrame:
    """Read epochs.csv. Values that are not numbers become NaN."""
    if not (path / EPOCHS_FILE).exists():
        raise ValueError(f"has no {EPOCHS_FILE}")
    rows = read_epochs(path)
    missing = [column for column in EPOCH_COLUMNS if column not in rows.columns]
    if missing:
        raise ValueError(f"{EPOCHS_FILE} has no column {missing[0]}")
    for column in EPOCH_COLUMNS:
        if column == "is_warmup":
            if rows[column].dtype != bool:
                rows[column] = rows[column].astype(str).str.lower().map({"true": 1.0, "false": 0.0})
        elif not pd.api.types.is_numeric_dtype(rows[column]):
            rows[column] = pd.to_numeric(rows[column], errors="coerce")
    return rows.astype(float).replace([np.inf, -np.inf], np.nan)


_LEARNING = ("loss", "accuracy", "score")
_MAX_EPOCH_TIME_S = 1e9
_MAX_COUNT = 1e9
_Tidy = tuple[pd.DataFrame, pd.DataFrame, int]


def _tidy(read: Sequence[tuple[Path, RunRecord, pd.DataFrame]]) -> list[_Tidy]:
    """Return for each run the valid rows of complete epochs, one row per epoch, and the number of unreadable rows.

    An epoch is complete if every rank completed it. All runs are processed together, because pandas takes about as long
    for one as for hundreds.
    """
    if not read:
        return []
    numbered = [rows.assign(run=number) for number, (_, _, rows) in enumerate(read)]
    rows = pd.concat(numbered, ignore_index=True)[["run", *EPOCH_COLUMNS]]
    good = rows[["attempt", "epoch", "rank", "is_warmup", "epoch_time_s", "num_samples"]].notna().all(axis=1)
    good &= (rows["epoch_time_s"] > 0) & (rows["epoch_time_s"] < _MAX_EPOCH_TIME_S) & (rows["num_samples"] > 0)
    for column in ("attempt", "epoch", "rank"):
        good &= (rows[column] >= 0) & (rows[column] < _MAX_COUNT) & (rows[column] % 1 == 0)
    num_torn = (~good).groupby(rows["run"]).sum()
    rows = rows[good].astype({"attempt": int, "epoch": int, "rank": int, "is_warmup": bool})
    rows = last_attempts(rows, by=["run", "epoch"]).drop_duplicates(["run", "epoch", "rank"], keep="last")
    world_sizes = rows["run"].map(
        {number: filled(record.strategy).world_size for number, (_, record, _) in enumerate(read)}
    )
    complete = rows.groupby(["run", "epoch"])["rank"].transform("nunique") == world_sizes
    rows = rows[complete].sort_values(["run", "epoch", "rank"])
    grouped = rows.groupby(["run", "epoch"])
    epochs = combine_ranks_frame(rows, by=["run", "epoch"])
    epochs["elapsed_s"] = epochs.groupby("run")["epoch_time_s"].cumsum()
    epochs = epochs.join(grouped[[f"{stage}_{what}" for stage in ("train", "val") for what in _LEARNING]].first())
    rank_rows = {number: frame.drop(columns="run").reset_index(drop=True) for number, frame in rows.groupby("run")}
    epoch_rows = {number: frame.drop(columns="run") for number, frame in epochs.reset_index().groupby("run")}
    no_rank_rows, no_epoch_rows = rows.iloc[:0], epochs.reset_index().iloc[:0]
    return [
        (
            rank_rows.get(number, no_rank_rows),
            epoch_rows.get(number, no_epoch_rows),
            int(num_torn.get(number, 0)),
        )
        for number in range(len(read))
    ]


def _num_missing(record: RunRecord, epochs: pd.DataFrame) -> int:
    """Return the number of epochs that epochs.csv lacks according to the record; negative: it has too many."""
    first, last = int(epochs["epoch"].min()), int(epochs["epoch"].max())
    training = record.laptime_config.get("training") or {}
    if record.result.stop_reason == "epochs":
        with suppress(KeyError, TypeError, ValueError):  # a damaged configuration
            last = num_laps(training) - 1
    if "checkpoint" in training and training["checkpoint"] is None:
        first = 0
    return last - first + 1 - len(epochs)


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return _missing_field(error.args[0])
    if isinstance(error, TypeError | AttributeError):
        return f"damaged: a field of {RUN_FILE} has the wrong type"
    if isinstance(error, OSError):
        return f"can't be read: {error.strerror or error}"
    message = (
        error.reason if isinstance(error, DamagedRecord) else str(error)
    )  # without the path, which is shown separately
    return escape_control_chars((message or type(error).__name__).splitlines()[0])


def _missing_field(name: str) -> str:
    return f"damaged, or written by an older version: {RUN_FILE} has no {name}"


def path_sort_key(path: Path) -> list[tuple[int, int, str]]:
    """Return a sort key for paths that orders numbers by value."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in path.parts]
