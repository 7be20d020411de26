"""What a run will take, in time and on disk, as far as records at hand tell."""

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

# Of the newest records so many are read.
_MAX_RECORDS = 500
# What decides most of what a run takes; where no record of the same configuration is at hand, one that shares these.
_SIMILARITY_KEYS = ("model.", "dataset.", "strategy.world_size", "training.batch_size", "training.precision", "device")


@dataclass(frozen=True)
class PastRun:
    """A completed run at hand.

    Attributes:
        hashed: its `hashed_config`.
        epoch_s: wall time per epoch, validation and checkpoint included, in seconds.
        rest_s: wall time of the run beyond its epochs, in seconds.
        num_bytes: of its directory.
    """

    hashed: Mapping[str, Any]
    epoch_s: float
    rest_s: float
    num_bytes: int


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        seconds: of wall time.
        num_bytes: on disk.
        basis: which records say so, in words.
    """

    seconds: float
    num_bytes: int
    basis: str


def past_runs(folders: Iterable[Path]) -> list[PastRun]:
    """The newest completed runs below some folders."""
    return list(_read_past_runs(newest_runs(folders)[:_MAX_RECORDS]))


def _read_past_runs(run_dirs: Iterable[Path]) -> Iterator[PastRun]:
    for path in run_dirs:
        with suppress(
            OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError
        ):  # whatever is wrong with a record
            record = RunRecord.read(path)
            num_epochs = len(read_epochs(path)["epoch"].unique())
            hashed, train_s = record.hashed_config or {}, record.timing.total_train_s
            if (
                record.status == "completed"
                and record.is_laptime_training
                and hashed["training.epochs"]
                and len(record.attempts) == 1
                and num_epochs
                and train_s is not None
            ):
                wall_s = parse_timestamp(record.ended_at or "") - parse_timestamp(record.started_at or "")
                files = [each for each in path.rglob("*") if each.is_file()]
                num_bytes = sum(each.stat().st_size for each in files)
                yield PastRun(hashed, train_s / num_epochs, max(0.0, wall_s - train_s), num_bytes)


def estimate(hashed: Mapping[str, Any], past_runs: Sequence[PastRun]) -> Estimate | None:
    """What a run with this configuration will take; None: no record tells.

    Args:
        hashed: the `hashed_config` that it will have.
        past_runs: completed runs.
    """
    left_out = ("seed", "training.epochs")

    def same(key: str) -> bool:
        return key not in left_out

    def alike(key: str) -> bool:
        return key.startswith(_SIMILARITY_KEYS)

    for matters, words in ((same, "the same configuration"), (alike, "another with its model, data, batch and ranks")):
        wanted = {key: value for key, value in hashed.items() if matters(key)}
        found = [
            one for one in past_runs if {key: value for key, value in one.hashed.items() if matters(key)} == wanted
        ]
        if found:
            epoch_s, rest_s, num_bytes = (
                statistics.median(getattr(one, name) for one in found) for name in ("epoch_s", "rest_s", "num_bytes")
            )
            basis = f"{counted(len(found), 'run')} of {words}"
            return Estimate(rest_s + hashed["training.epochs"] * epoch_s, round(num_bytes), basis)
    return None
