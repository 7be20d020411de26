"""run.json and epochs.csv as plain values, for tests that write and change them."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from laptime.record import files
from laptime.record.epochs import EpochRow
from laptime.record.run_record import RunRecord

EPOCH_ROW: dict[str, Any] = {
    "attempt": 0,
    "epoch": 1,
    "rank": 0,
    "is_warmup": False,
    "epoch_time_s": 1.25,
    "num_samples": 100,
    "samples_per_s": 80.0,
    "data_wait_s": 0.5,
    "train_loss": 0.1,
    "train_accuracy": 0.9,
    "val_loss": 0.2,
    "val_accuracy": 0.8,
    "lr": 0.001,
    "cpu_percent": 99.5,
    "rss_bytes": 2**33,
    "device_memory_bytes": 2**34,
    "num_tokens": 3200,
    "num_batches": 10,
    "apart_s": 0.25,
    "train_score": 0.9,
    "val_score": 0.8,
}


def new_record() -> dict[str, Any]:
    """The record of a run that has just started."""
    return RunRecord(started_at=files.now()).to_json()


def update(record: dict[str, Any], section: str, **values: Any) -> None:
    """Set keys of a section. They must be in the schema."""
    for key, value in values.items():
        if key not in record[section]:
            raise KeyError(f"run.json has no {section}.{key}")
        record[section][key] = value


def write_record(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Write run.json without validation, so that tests can write damaged ones."""
    text = json.dumps(files.finite(record), indent=2, allow_nan=False)
    files.write_atomically(run_dir / files.RUN_FILE, text.encode() + b"\n")


def start_attempt(record: dict[str, Any], attempt: int) -> None:
    """Add a started attempt to a record."""
    run_record = RunRecord(status=record["status"])
    run_record.start_attempt(attempt)
    record["attempts"].append(to_builtins(run_record.attempts[-1]))


def end_attempt(record: dict[str, Any], status: str, error: Mapping[str, Any] | None) -> None:
    """Set the end of a run and of its last attempt."""
    end = {"status": status, "error": error, "ended_at": files.now()}
    record.update(end)
    record["attempts"][-1].update(end)


def append_epochs(run_dir: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to epochs.csv."""
    files.append_epochs(run_dir, [EpochRow(**row) for row in rows])
