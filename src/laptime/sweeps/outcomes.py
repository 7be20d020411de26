"""Outcomes of the runs of a sweep, collected from all processes that run them."""

import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from laptime.record.directory import hostname_hash, numbered_runs
from laptime.record.files import write_atomically
from laptime.record.run_record import mark_launcher_died

# Folder in the sweep directory where other processes write outcomes. It exists while the sweep is running.
OUTCOMES_DIR = ".outcomes"
KILLED = "its process was killed"
_STOP = "stop"


@dataclass(frozen=True)
class Outcome:
    """The state of a run.

    Attributes:
        run: its number and its swept overrides: `1 (seed=2)`.
        status: begun, completed, failed or interrupted.
        message: the reason why it failed.
        exit_code: the exit code that the sweep gets at least.
        pid, host: the process that runs it, and its machine.
    """

    run: str
    status: str
    message: str = ""
    exit_code: int = 0
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=hostname_hash)

    @property
    def number(self) -> int:
        return int(self.run.partition(" ")[0])

    @property
    def may_run_on_this_host(self) -> bool:
        """Whether its last known status is `begun`, in a process on this machine."""
        return self.status == "begun" and self.host == hostname_hash()


class OutcomeStore:
    """The outcomes of started runs, and whether the sweep has been stopped.

    Launchers pickle it to other processes. Copies write files below the sweep directory; the original reads them.

    Args:
        sweep_dir: the absolute path of the sweep directory.
        is_one_process: whether the process of the sweep itself runs the jobs, one after the other.
    """

    def __init__(self, sweep_dir: Path, is_one_process: bool) -> None:
        self._sweep_dir = sweep_dir
        self._folder = sweep_dir / OUTCOMES_DIR
        self._is_one_process = is_one_process
        self._owner = os.getpid()
        self._noted: dict[str, Outcome] = {}

    def note(self, outcome: Outcome) -> None:
        """Store an outcome; it replaces an earlier one of the same run."""
        if self._is_owner:
            self._noted[outcome.run] = outcome
            return
        with suppress(OSError):  # a full disk: only the run's record has its outcome then
            self._write(f"{outcome.number}.json", json.dumps(asdict(outcome)))

    def all(self) -> list[Outcome]:
        """The outcomes of all started runs, in the order of their numbers."""
        by_run = dict(self._noted)
        for path in self._folder.glob("*.json"):
            with suppress(OSError, ValueError, TypeError):
                outcome = Outcome(**json.loads(path.read_bytes()))
                by_run[outcome.run] = outcome
        return sorted(by_run.values(), key=lambda outcome: outcome.number)

    def stop(self, exit_code: int) -> None:
        """Start no further runs.

        Raises:
            SystemExit: this process runs the jobs itself.
        """
        if self._is_owner and self._is_one_process:
            sys.exit(exit_code)
        with suppress(OSError):
            self._write(_STOP, str(exit_code))

    def stopped(self) -> int | None:
        """The exit code of a stopped sweep; None: it was not stopped."""
        try:
            return int((self._folder / _STOP).read_text())
        except (OSError, ValueError):
            return None

    def end_records(self) -> None:
        """Mark the records of runs whose process was killed as failed."""
        runs = numbered_runs(self._sweep_dir) if self._sweep_dir.is_dir() else {}
        for outcome in self.all():
            path = runs.get(outcome.number)
            if path is None or not outcome.may_run_on_this_host or psutil.pid_exists(outcome.pid):
                continue
            with suppress(OSError, ValueError, KeyError):
                mark_launcher_died(path, KILLED)

    def forget(self) -> None:
        """Remove the files with the outcomes."""
        with suppress(OSError):
            for path in self._folder.iterdir():
                path.unlink()
            self._folder.rmdir()

    @property
    def _is_owner(self) -> bool:
        return os.getpid() == self._owner

    def _write(self, name: str, text: str) -> None:
        self._folder.mkdir(exist_ok=True)
        write_atomically(self._folder / name, text.encode())
