"""Loads run directories as data frames: `laptime.load`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from laptime.errors import UserError
from laptime.record import files as records
from laptime.record.epochs import EPOCH_COLUMNS
from laptime.record.latest import newest_runs
from laptime.record.score import Score
from laptime.text import escape_control_chars

if TYPE_CHECKING:  # pandas is slow to import, and `import laptime` does not need it
    import pandas as pd

    from laptime.analysis.load import Run


@dataclass(frozen=True)
class Results:
    """Runs as data frames. Figures that were not measured are missing (NaN, None).

    Attributes:
        runs: one row per completed run. The first columns are `run` (path of its directory), `group` (label of its
            group of repeats), `device` (the device that trained), `seed` (missing: unknown), `config_hash`,
            `group_hash`, `started_at` and `ended_at` (times in UTC), `commit`, `hostname_hash`, and `lap` (the timed
            unit, e.g. `epoch` or `20 batches by LapTimer`). The figures of run.json follow by name, e.g.
            `epoch_time_s`, `samples_per_s`, `world_size`, `score` (its name), `test_score`, `test_accuracy`. They come
            from the sections device, dataset, model, strategy, batch, timing, result, resources, communication,
            contention, breakdown, peak, bare_loop and quality. If an earlier section has the same name, the section's
            name is a prefix: `model_name`, `dataset_name`, `bare_loop_epoch_time_s`. Every setting follows by its full
            key: `optimizer.lr`, `training.batch_size`. If a figure has the same name, the prefix is `config.`. Lists
            are JSON strings.
        epochs: one row per run, epoch and rank. If several attempts trained an epoch, the last one counts. The columns
            are `run` and those of epochs.csv: `attempt`, `epoch`, `rank` (all from 0), `is_warmup`, `epoch_time_s`,
            `num_samples` and `samples_per_s` (of this rank), `data_wait_s`, `train_loss`, `train_accuracy`, `val_loss`,
            `val_accuracy` (of all ranks), `lr`, `cpu_percent`, `rss_bytes`, `device_memory_bytes`, `num_tokens`,
            `num_batches`, `apart_s`, `train_score`, `val_score` (of all ranks).
        groups: one row per group of repeats, as in summary/groups.csv. `samples_per_s` is derived from the median time.
            For an even number of repeats it differs slightly from the median of the repeats' `samples_per_s`.
        scaling: speedup and scaling efficiency by number of ranks, as in summary/scaling.csv.
        skipped: run directories that were not loaded, with `run` and `reason`: failed, interrupted, unfinished and
            damaged runs, and runs of older versions.
    """

    runs: "pd.DataFrame"
    epochs: "pd.DataFrame"
    groups: "pd.DataFrame"
    scaling: "pd.DataFrame"
    skipped: "pd.DataFrame"

    def __repr__(self) -> str:
        return f"Results({len(self.runs)} runs, {len(self.epochs)} rows of epochs, {len(self.skipped)} skipped)"


def load(*folders: str | Path) -> Results:
    """Load runs and sweeps as data frames, e.g. in a notebook. Does not import torch.

        results = laptime.load("multirun/2026-11-22/09-42-53")
        results.runs.groupby("world_size")["samples_per_s"].median()
        results.epochs.merge(results.runs[["run", "model_name"]], on="run")

    Args:
        folders: run directories, sweep directories, or folders that contain them. `latest` is the newest run below
            outputs/ and multirun/, or its whole sweep if it belongs to one.

    Returns:
        All runs in and below the folders, without duplicates.

    Raises:
        UserError: a folder does not exist, or `latest` finds no run.
    """
    import pandas as pd

    from laptime.analysis.analyze import analyze
    from laptime.analysis.summary_tables import groups_table, scaling_table

    if not folders:
        raise UserError("laptime.load(): no directory given. Pass run or sweep directories, or 'latest'.")
    analysis = analyze([_latest() if folder == "latest" else Path(folder) for folder in folders])
    labels = {run.path: group.label for group in analysis.groups for run in group.runs}
    labeled = [(run, labels[run.path]) for run in analysis.runs]
    rows = [_with_settings(run_row(run, label), run) for run, label in labeled]
    runs = pd.DataFrame(rows, columns=None if rows else ["run", "group", "seed"])
    for column in {"started_at", "ended_at"} & set(runs.columns):
        runs[column] = pd.to_datetime(runs[column], utc=True, errors="coerce")
    epochs = [run.ranks.assign(run=escape_control_chars(str(run.path))) for run, _ in labeled]
    columns = ["run", *EPOCH_COLUMNS]
    return Results(
        runs=runs,
        epochs=pd.concat(epochs, ignore_index=True)[columns] if epochs else pd.DataFrame(columns=columns),
        groups=groups_table(analysis.groups, None),
        scaling=scaling_table(analysis.families, analysis.project),
        skipped=pd.DataFrame(
            [(escape_control_chars(str(skipped.path)), skipped.reason) for skipped in analysis.skipped],
            columns=["run", "reason"],
        ),
    )


_SECTIONS = (
    "device", "dataset", "model", "strategy", "batch", "timing", "result", "resources", "communication", "contention",
    "breakdown", "peak", "bare_loop", "quality",
)  # fmt: skip


def run_row(run: "Run", label: str) -> dict[str, object]:
    """Return a run's figures as one row.

    Args:
        label: the label of the run's group.
    """
    from laptime.analysis.conditions import conditions_of

    record = run.record
    row: dict[str, object] = {"run": escape_control_chars(str(run.path)), "group": label, "seed": run.seed}
    row |= {key: getattr(record, key) for key in ("config_hash", "group_hash", "started_at", "ended_at")}
    for section in _SECTIONS:
        for key, value in structs.asdict(getattr(record, section)).items():
            row[key if key not in row and key != "name" else f"{section}_{key}"] = _cell(value)
    row |= {"commit": record.git.commit, "hostname_hash": run.environment.hostname_hash}
    return row | {"lap": conditions_of(run).lap}


def _with_settings(row: dict[str, object], run: "Run") -> dict[str, object]:
    """Add the settings to a row. A setting of another program that has a figure's name gets the prefix `config.`."""
    settings = {key: _cell(value) for key, value in run.config.items() if key != "seed"}
    return row | {f"config.{key}" if key in row else key: value for key, value in settings.items()}


def _cell(value: object) -> object:
    if isinstance(value, Score):
        return value.name
    return json.dumps(value) if isinstance(value, list | dict) else value


def _latest() -> Path:
    """Return the newest run, or its sweep if it belongs to one."""
    run = next(iter(newest_runs()), None)
    if run is None:
        raise UserError("latest: there is no run below outputs/ or multirun/.")
    return run.parent if (run.parent / records.SWEEP_FILE).exists() else run
