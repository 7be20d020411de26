"""A run of an earlier sweep, read from its directory."""

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

# Tolerance for differences between the clock of a process and the time stamps of files.
_CLOCK_TOLERANCE_S = 10.0


@dataclass(frozen=True)
class EarlierRun:
    """A run directory of the sweep.

    Attributes:
        record: the run's record; None: run.json is missing or can't be read.
        overrides: the overrides in Hydra's files in the run directory.
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
        """Whether the run ended before it wrote its overrides, so that its job is not known."""
        return self.record is None and not self.overrides

    @property
    def label(self) -> str:
        """The name of the run within its sweep, and of the folder of its TensorBoard events."""
        return "" if self.record is None else self.record.run_label or ""

    @property
    def config(self) -> dict[str, Any]:
        """The recorded configuration; empty without a record."""
        return (None if self.record is None else self.record.config) or {}

    @property
    def end_text(self) -> str:
        if self.record is None:
            return "no readable run.json"
        status = "killed" if self.record.status == "running" else self.record.status
        error = self.record.error
        return status if error is None or not error.first_line else f"{status} ({error.first_line})"


def move_to_earlier(run_dir: Path) -> None:
    """Move the files of a run to earlier/0/, the next time to earlier/1/, so that it starts from the beginning."""
    earlier = run_dir / EARLIER_DIR
    target = earlier / str(max(numbered_runs(earlier), default=-1) + 1 if earlier.is_dir() else 0)
    target.mkdir(parents=True)
    for entry in run_dir.iterdir():
        if entry != earlier and not entry.name.startswith("."):  # Hydra has written its files for the new start already
            entry.rename(target / entry.name)


def running_ranks(run: EarlierRun) -> list[int]:
    """Return the pids of the living ranks of a run with status `running` on this machine.

    A process that was started outside the lifetime of the run has reused a pid and is not returned.
    """
    record = run.record
    if record is None or record.status != "running" or record.strategy is None:
        return []
    if record.environment is None or record.environment.hostname_hash != hostname_hash():
        return []
    alive = []
    first = parse_timestamp(record.started_at or "") - _CLOCK_TOLERANCE_S
    last = (run.path / RUN_FILE).stat().st_mtime + _CLOCK_TOLERANCE_S
    for pid in record.strategy.rank_pids or []:
        try:
            process = psutil.Process(pid)
            if first <= process.create_time() <= last and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(pid)
        except psutil.Error:
            pass
    return alive


def read_run(number: int, path: Path, output_subdir: str) -> EarlierRun:
    """Read a run's record and overrides; `output_subdir` is the value of `hydra.output_subdir`."""
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
    """Return the record if it has every section that resuming needs.

    Raises:
        ValueError: a section is missing.
    """
    parse_timestamp(record.started_at or "")
    config = record.laptime_config
    if record.run_label is None or "threads_per_rank" not in (config.get("strategy") or {}):
        raise ValueError("its configuration is incomplete")
    return record
