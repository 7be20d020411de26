"""A run of an earlier sweep, as its directory tells."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import psutil

from laptime.config.overrides import first_refused
from laptime.record.directory import hostname_hash, numbered_runs
from laptime.record.files import (
    EARLIER_DIR,
    RUN_FILE,
    parse_timestamp,
    read_record,
)
from laptime.record.hydra_files import NotHydras, read_overrides

# What each record must have, and of which type.
_NEEDED: dict[str, Any] = {
    "status": str, "error": (dict, NoneType), "started_at": str, "config": dict, "strategy": dict, "attempts": list,
    "environment": (dict, NoneType), "config_hash": (str, NoneType), "hashed_config": (dict, NoneType),
}  # fmt: skip

# Clocks and file systems may differ by so much about when something happened.
_CLOCK_S = 10.0


@dataclass(frozen=True)
class EarlierRun:
    """A run directory of the sweep.

    Attributes:
        record: run.json; empty: it ended before it had one that can be read.
        overrides: as Hydra keeps them beside the run.
    """

    number: int
    path: Path
    record: Mapping[str, Any]
    overrides: list[str]

    @property
    def is_completed(self) -> bool:
        return bool(self.record.get("status") == "completed")

    @property
    def config_hash(self) -> str | None:
        return self.record.get("config_hash")

    @property
    def is_nameless(self) -> bool:
        """Whether it ended before it could say what it was."""
        return not self.record and not self.overrides

    @property
    def label(self) -> str:
        """What tells it from the others of its sweep: its TensorBoard events lie below it."""
        return str(self.record["config"]["run_label"])

    @property
    def how_it_ended(self) -> str:
        if not self.record:
            return "has no run.json that can be read"
        status = "was killed" if self.record["status"] == "running" else str(self.record["status"])
        message = str((self.record["error"] or {}).get("message") or "").partition("\n")[0]
        return f"{status} ({message})" if message else status


def set_aside(run_dir: Path) -> None:
    """Move what a run has left behind to earlier/0/, the next time to earlier/1/, so that it starts afresh."""
    earlier = run_dir / EARLIER_DIR
    place = earlier / str(max(numbered_runs(earlier), default=-1) + 1 if earlier.is_dir() else 0)
    place.mkdir(parents=True)
    for entry in run_dir.iterdir():
        if entry != earlier and not entry.name.startswith("."):  # Hydra's files are this start's already
            entry.rename(place / entry.name)


def living_ranks(run: EarlierRun) -> list[int]:
    """The ranks' processes of a run that says it is running, as far as they are there, and no others of their pid.

    Those of another machine can't be seen from here.
    """
    if run.record.get("status") != "running":
        return []
    if (run.record["environment"] or {}).get("hostname_hash") != hostname_hash():
        return []
    alive = []
    first = parse_timestamp(run.record["started_at"]) - _CLOCK_S
    last = (run.path / RUN_FILE).stat().st_mtime + _CLOCK_S
    for pid in run.record["strategy"]["rank_pids"] or []:
        try:
            process = psutil.Process(pid)
            if first <= process.create_time() <= last and process.status() != psutil.STATUS_ZOMBIE:
                alive.append(pid)
        except psutil.Error:
            pass
    return alive


def read_run(number: int, path: Path, kept_in: str) -> EarlierRun:
    """A run's record and overrides; `kept_in` is Hydra's folder in its directory (`hydra.output_subdir`)."""
    try:
        record = read_record(path)
    except (OSError, ValueError, RecursionError):
        record = {}
    if not _is_whole(record):
        record = {}
    try:
        overrides = read_overrides(path, kept_in)
    except NotHydras:
        overrides = []
    if first_refused(overrides) is not None:
        overrides = []
    return EarlierRun(number, path, record, overrides)


def _is_whole(record: Mapping[str, Any]) -> bool:
    """Whether all is there that is asked of a record below."""
    if not all(isinstance(record.get(key), kind) for key, kind in _NEEDED.items()):
        return False
    try:
        _ = record["strategy"]["rank_pids"], record["strategy"]["threads_per_rank"], record["config"]["run_label"]
        _ = record["config"]["strategy"]["threads_per_rank"], parse_timestamp(record["started_at"])
        if record["environment"]:
            _ = record["environment"]["code_hash"], record["environment"]["packages"]["torch"], record["git"]["commit"]
    except (KeyError, TypeError, ValueError):
        return False
    return True
