"""Estimate the time and disk space of a run from the records of past runs."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laptime.record.files import parse_timestamp, read_epochs
from laptime.record.latest import newest_runs
from laptime.record.run_record import RunRecord
from laptime.text import counted

# Only the newest records are read.
_MAX_RECORDS = 500
# Keys that mostly determine the cost of a run. Without a past run of the same configuration, runs with equal values of
# these keys count as similar.
_COST_KEYS = (
    "task.",
    "model.",
    "dataset.",
    "strategy.world_size",
    "training.batch_size",
    "training.precision",
    "device",
)


@dataclass(frozen=True)
class PastRun:
    """A completed run.

    Attributes:
        hashed: its `hashed_config`.
        unit_s: wall time per epoch, or per optimizer step of a training by steps, including validation and checkpoints,
            in seconds.
        rest_s: wall time of the run outside its epochs, in seconds.
        num_bytes: size of its directory.
    """

    hashed: Mapping[str, Any]
    unit_s: float
    rest_s: float
    num_bytes: int


@dataclass(frozen=True)
class Estimate:
    """The cost of a run.

    Attributes:
        seconds: wall time.
        num_bytes: disk space.
        basis: a description of the past runs behind the estimate.
    """

    seconds: float
    num_bytes: int
    basis: str


def past_runs(folders: Iterable[Path]) -> list[PastRun]:
    """Return the newest completed runs below the folders."""
    return list(_read_past_runs(newest_runs(folders)[:_MAX_RECORDS]))


def _read_past_runs(run_dirs: Iterable[Path]) -> Iterator[PastRun]:
    for path in run_dirs:
        with suppress(
            OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError
        ):  # a damaged record is skipped
            record = RunRecord.read(path)
            hashed, train_s = record.hashed_config or {}, record.timing.total_train_s
            num_units = len(read_epochs(path)["epoch"].unique()) * hashed.get("training.lap_steps", 1)
            if (
                record.status == "completed"
                and record.is_laptime_training
                and _length(hashed)
                and len(record.attempts) == 1
                and num_units
                and train_s is not None
            ):
                wall_s = parse_timestamp(record.ended_at or "") - parse_timestamp(record.started_at or "")
                num_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                yield PastRun(hashed, train_s / num_units, max(0.0, wall_s - train_s), num_bytes)


def _length(hashed: Mapping[str, Any]) -> int:
    """Return the number of epochs, or of optimizer steps of a training by steps."""
    length: int = hashed["training.max_steps"] if _is_by_steps(hashed) else hashed["training.epochs"]
    return length


def _is_by_steps(hashed: Mapping[str, Any]) -> bool:
    return "training.max_steps" in hashed


def estimate(hashed: Mapping[str, Any], past_runs: Sequence[PastRun]) -> Estimate | None:
    """Estimate the cost of a run; None: no similar run is known.

    Args:
        hashed: the `hashed_config` that it will have.
        past_runs: the completed runs to estimate from.
    """

    def is_compared(key: str) -> bool:
        return key not in ("seed", "training.epochs", "training.max_steps")

    def is_cost_key(key: str) -> bool:
        return key.startswith(_COST_KEYS)

    for is_relevant, similarity in (
        (is_compared, "of the same configuration"),
        (is_cost_key, "with the same model, data, batch size and ranks"),
    ):
        relevant = {key: value for key, value in hashed.items() if is_relevant(key)}
        similar = [
            run
            for run in past_runs
            if _is_by_steps(run.hashed) == _is_by_steps(hashed)
            and {key: value for key, value in run.hashed.items() if is_relevant(key)} == relevant
        ]
        if similar:
            unit_s, rest_s, num_bytes = (
                statistics.median(getattr(run, name) for run in similar) for name in ("unit_s", "rest_s", "num_bytes")
            )
            basis = f"{counted(len(similar), 'run')} {similarity}"
            return Estimate(rest_s + _length(hashed) * unit_s, round(num_bytes), basis)
    return None
