"""Reads run directories: what can be counted becomes a Run, the rest is listed with the reason."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from laptime.record import EPOCH_COLUMNS, EPOCHS_FILE, RUN_FILE, each_epoch_once, read_epochs, read_record

# Below these nothing is a run: what the analysis itself and other tools write.
_NOT_RUNS = {"summary", ".git", "__pycache__"}


@dataclass(frozen=True)
class Run:
    """A completed run.

    Attributes:
        path: its directory.
        record: run.json.
        ranks: rows of epochs.csv that stand, one per epoch and rank.
        epochs: one row per epoch, in order: epoch, is_warmup, epoch_time_s (the slowest rank's), samples_per_s,
            elapsed_s (training time until its end), train_loss, train_accuracy, val_loss, val_accuracy.
        remarks: what to know of its figures.
    """

    path: Path
    record: Mapping[str, Any]
    ranks: pd.DataFrame
    epochs: pd.DataFrame
    remarks: tuple[str, ...] = ()

    @property
    def counted(self) -> pd.DataFrame:
        """The epochs that count: no warm-up."""
        return self.epochs[~self.epochs["is_warmup"]]

    @property
    def config(self) -> Mapping[str, Any]:
        """What can change its result or its timing, by full key."""
        config: Mapping[str, Any] = self.record["hashed_config"]
        return config


@dataclass(frozen=True)
class Skipped:
    """A run directory that can't be counted."""

    path: Path
    reason: str


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """All run directories in and below the folders, each once, in the order of their paths, numbers by value."""
    found: dict[Path, Path] = {}
    for folder in folders:
        for marker in (RUN_FILE, ".hydra/config.yaml"):
            for path in folder.rglob(marker):
                run = path.parent if marker == RUN_FILE else path.parent.parent
                if not _NOT_RUNS.intersection(run.relative_to(folder).parts):
                    found.setdefault(run.resolve(), run)
    return sorted(found.values(), key=_by_number)


def load_runs(folders: Iterable[Path]) -> tuple[list[Run], list[Skipped]]:
    """Read all run directories in and below the folders."""
    runs, skipped = [], []
    for path in find_runs(folders):
        try:
            runs.append(read_run(path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            skipped.append(Skipped(path, _reason(error)))
    return runs, skipped


def read_run(path: Path) -> Run:
    """Read one run directory.

    Raises:
        FileNotFoundError, ValueError, KeyError, TypeError: it is not complete; the message says why.
    """
    if not (path / RUN_FILE).exists():
        raise ValueError(f"has no {RUN_FILE}, so it ended before it had started")
    record = read_record(path)
    if record.get("status") != "completed":
        message = (record.get("error") or {}).get("message")
        raise ValueError(f"{record.get('status')}{': ' + str(message).splitlines()[0] if message else ''}")
    if not isinstance(record.get("hashed_config"), dict):
        raise ValueError("was written by an older Laptime, whose records can't be compared")
    world_size = record["strategy"]["world_size"]
    if not isinstance(world_size, int) or world_size < 1:
        raise ValueError(f"damaged: strategy.world_size is {world_size}")
    for section, keys in _NEEDED.items():
        for key in keys:
            record[section][key]
    ranks, num_torn = _whole_rows(read_epochs(path), world_size)
    epochs = _over_ranks(ranks)
    if epochs.empty:
        raise ValueError(f"{EPOCHS_FILE} has no whole epoch")
    if epochs["is_warmup"].all():
        raise ValueError("no epoch after the warm-up")
    remarks = (f"{num_torn} rows of {EPOCHS_FILE} can't be read",) if num_torn else ()
    return Run(path, record, ranks, epochs, remarks)


_NEEDED = {
    "device": ("used", "requested", "name", "precision"),
    "dataset": ("name", "checksum", "num_test"),
    "model": ("name",),
    "strategy": ("threads_per_rank", "oversubscribed", "backend"),
    "batch": ("scope", "per_rank_batch_size", "global_batch_size"),
    "timing": ("total_train_s", "startup_s", "straggling"),
    "result": ("train_loss", "test_accuracy", "val_accuracy"),
    "communication": ("step_s", "cost_s"),
    "contention": ("no_sync_step_s", "straggling"),
    "resources": ("peak_rss_bytes", "cpu_percent"),
    "environment": ("packages", "cpu", "num_usable_cores", "hostname_hash", "code_hash"),
    "git": ("commit", "diff_hash"),
    "config": ("measure",),
}


def _whole_rows(rows: pd.DataFrame, world_size: int) -> tuple[pd.DataFrame, int]:
    """The rows that stand, of epochs that every rank has completed; and how many can't be read."""
    missing = [column for column in EPOCH_COLUMNS if column not in rows.columns]
    if missing:
        raise ValueError(f"{EPOCHS_FILE} has no column {missing[0]}")
    rows = rows[list(EPOCH_COLUMNS)].copy()
    truth = rows["is_warmup"].astype(str).str.lower().map({"true": True, "false": False})
    for column in EPOCH_COLUMNS:
        if rows[column].dtype == object:
            rows[column] = pd.to_numeric(rows[column], errors="coerce")
    good = rows[["attempt", "epoch", "rank", "epoch_time_s", "num_samples"]].notna().all(axis=1) & truth.notna()
    good &= rows["epoch_time_s"] > 0
    rows = rows[good].assign(is_warmup=truth[good].astype(bool))
    rows = rows.astype({"attempt": int, "epoch": int, "rank": int})
    rows = each_epoch_once(rows).drop_duplicates(["epoch", "rank"], keep="last")
    complete = rows.groupby("epoch")["rank"].transform("nunique") == world_size
    return rows[complete].sort_values(["epoch", "rank"]).reset_index(drop=True), int((~good).sum())


def _over_ranks(ranks: pd.DataFrame) -> pd.DataFrame:
    grouped = ranks.groupby("epoch")
    epochs = grouped[["train_loss", "train_accuracy", "val_loss", "val_accuracy"]].first()
    epochs.insert(0, "is_warmup", grouped["is_warmup"].max())
    epochs.insert(1, "epoch_time_s", grouped["epoch_time_s"].max())
    epochs.insert(2, "samples_per_s", grouped["num_samples"].sum() / epochs["epoch_time_s"])
    epochs.insert(3, "elapsed_s", epochs["epoch_time_s"].cumsum())
    return epochs.reset_index()


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"damaged: {RUN_FILE} has no {error.args[0]}"
    if isinstance(error, TypeError | AttributeError):
        return f"damaged: a part of {RUN_FILE} is not what it should be"
    if isinstance(error, OSError):
        return f"can't be read: {error.strerror or error}"
    message = str(error).splitlines()[0] if str(error) else type(error).__name__
    return message.rpartition(f"{RUN_FILE}: ")[2]  # the path is beside it


def _by_number(path: Path) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in path.parts]
