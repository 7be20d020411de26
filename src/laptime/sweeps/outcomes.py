"""What has become of the runs of a sweep, wherever they run."""

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

# Where processes of a sweep say what has become of their runs, below its directory, as long as it goes on.
OUTCOMES_DIR = ".outcomes"
ENDED = "its process was ended"
_STOP = "stop"


@dataclass(frozen=True)
class Outcome:
    """What has become of a run.

    Attributes:
        run: its number and what is swept in it.
        status: begun, completed, failed or interrupted.
        message: why it failed.
        exit_code: what it asks of the whole sweep's.
        pid, host: the process that runs it.
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
        """Whether it goes on, as far as its process has said, in a process of this machine."""
        return self.status == "begun" and self.host == hostname_hash()


class OutcomeStore:
    """The outcomes of the runs that have begun, and whether further ones may begin.

    Launchers send copies of it to other processes: those write files below the sweep's directory, which the process
    that made it reads.

    Args:
        sweep_dir: absolute.
        is_one_process: the runs go on, one by one, in the process that has the sweep.
    """

    def __init__(self, sweep_dir: Path, is_one_process: bool) -> None:
        self._sweep_dir = sweep_dir
        self._folder = sweep_dir / OUTCOMES_DIR
        self._is_one_process = is_one_process
        self._owner = os.getpid()
        self._own: dict[str, Outcome] = {}

    def note(self, outcome: Outcome) -> None:
        """Keep an outcome in place of the run's earlier one."""
        if self._is_owner:
            self._own[outcome.run] = outcome
            return
        with suppress(OSError):  # a full disk: then the run has no outcome but in its record
            self._write(f"{outcome.number}.json", json.dumps(asdict(outcome)))

    def all(self) -> list[Outcome]:
        """Of every run that has begun so far, by number."""
        found = dict(self._own)
        for path in self._folder.glob("*.json"):
            with suppress(OSError, ValueError, TypeError):
                outcome = Outcome(**json.loads(path.read_bytes()))
                found[outcome.run] = outcome
        return sorted(found.values(), key=lambda outcome: outcome.number)

    def stop(self, exit_code: int) -> None:
        """Let no further run begin.

        Raises:
            SystemExit: this is the process that would run them.
        """
        if self._is_owner and self._is_one_process:
            sys.exit(exit_code)
        with suppress(OSError):
            self._write(_STOP, str(exit_code))

    def stopped(self) -> int | None:
        """The exit code with which the sweep is to end early; None: it goes on."""
        try:
            return int((self._folder / _STOP).read_text())
        except (OSError, ValueError):
            return None

    def end_records(self) -> None:
        """Runs whose process was ended from outside have failed, though nobody was left to write it down."""
        runs = numbered_runs(self._sweep_dir) if self._sweep_dir.is_dir() else {}
        for each in self.all():
            path = runs.get(each.number)
            if path is None or not each.may_run_on_this_host or psutil.pid_exists(each.pid):
                continue
            with suppress(OSError, ValueError, KeyError):
                mark_launcher_died(path, ENDED)

    def forget(self) -> None:
        """Remove the files."""
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
