"""A run of an earlier sweep, as its directory tells."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from laptime.config.overrides import first_invalid
from laptime.record.directory import hostname_hash, numbered_runs
from laptime.record.files import (
    EARLIER_DIR,
    RUN_FILE,
    parse_timestamp,
)
from laptime.record.hydra_files import HydraFileError, read_overrides
from laptime.record.run_record import RunRecord

# Clocks and file systems may differ by so much about when something happened.
_CLOCK_S = 10.0


@dataclass(frozen=True)
class EarlierRun:
    """A run directory of the sweep.

    Attributes:
        record: None: it ended before it had one that can be read.
        overrides: as Hydra keeps them beside the run.
    """

    number: int
    path: Path
    record: RunRecord | None
    overrides: list[str]

    @property
    def is_completed(self) -> bool:
        return self.record is not None and self.record.status == "completed"

    @property
    def config_hash(self) -> str | None:
        return None if self.record is None else self.record.config_hash

    @property
    def is_unidentified(self) -> bool:
        """Whether it ended before it could say what it was."""
        return self.record is None and not self.overrides

    @property
    def label(self) -> str:
        """What tells it from the others of its sweep: its TensorBoard events lie below it."""
        return "" if self.record is None else self.record.run_label or ""

    @property
    def config(self) -> dict[str, Any]:
        """As recorded; empty: it has no record."""
        return (None if self.record is None else self.record.config) or {}

    @property
    def end_text(self) -> str:
        if self.record is None:
            return "has no run.json that can be read"
        status = "was killed" if self.record.status == "running" else self.record.status
        error = self.record.error
        return status if error is None or not error.first_line else f"{status} ({error.first_line})"


def move_to_earlier(run_dir: Path) -> None:
    """Move what a run has left behind to earlier/0/, the next time to earlier/1/, so that it starts afresh."""
    earlier = run_dir / EARLIER_DIR
    place = earlier / str(max(numbered_runs(earlier), default=-1) + 1 if earlier.is_dir() else 0)
    place.mkdir(parents=True)
    for entry in run_dir.iterdir():
        if entry != earlier and not entry.name.startswith("."):  # Hydra's files are this start's already
            entry.rename(place / entry.name)


def running_ranks(run: EarlierRun) -> list[int]:
    """The ranks' processes of a run that says it is running, as far as they are there, and no others of their pid.

    Those of another machine can't be seen from here.
    """
    record = run.record
    if record is None or record.status != "running" or record.strategy is None:
        return []
    if record.environment is None or record.environment.hostname_hash != hostname_hash():
        return []
    alive = []
    first = parse_timestamp(record.started_at or "") - _CLOCK_S
    last = (run.path / RUN_FILE).stat().st_mtime + _CLOCK_S
    for pid in record.strategy.rank_pids or []:
        try:
            process = psutil.Process(pid)
            if first <= process.create_time() <= last and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(pid)
        except psutil.Error:
            pass
    return alive


def read_run(number: int, path: Path, output_subdir: str) -> EarlierRun:
    """A run's record and overrides; `output_subdir` is Hydra's folder in its directory (`hydra.output_subdir`)."""
    try:
        record = _whole(RunRecord.read(path))
    except (OSError, ValueError, RecursionError):
        record = None
    try:
        overrides = read_overrides(path, output_subdir)
    except HydraFileError:
        overrides = []
    if first_invalid(overrides) is not None:
        overrides = []
    return EarlierRun(number, path, record, overrides)


def _whole(record: RunRecord) -> RunRecord:
    """A record that has what is asked of it here.

    Raises:
        ValueError: it hasn't.
    """
    parse_timestamp(record.started_at or "")
    config = record.laptime_config
    if record.run_label is None or "threads_per_rank" not in (config.get("strategy") or {}):
        raise ValueError("its configuration is not whole")
    return record
