"""The status of a sweep or a run, read from its files only, so that other processes and machines can watch it."""

import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from laptime.record.directory import numbered_runs, owner_is_gone, owner_pid
from laptime.record.epochs import combine_ranks_frame, last_attempts
from laptime.record.files import (
    LOG_FILE,
    RUN_FILE,
    parse_timestamp,
    read_epochs,
)
from laptime.record.heartbeat import DEAD_AFTER_S, HEARTBEAT_FILE
from laptime.record.laps import num_laps
from laptime.record.plan import read_plan
from laptime.record.run_record import RunRecord

_LAST_BYTES = 4096
# The prefix of a line in train.log: only the time is shown.
_PREFIX = re.compile(r"\[\S+ (?P<time>[\d:]+),\d+\](\[[^\]]*\])* ")


@dataclass(frozen=True)
class RunStatus:
    """The status of a run.

    Attributes:
        number: its number in the sweep; None: a single run.
        overrides: the overrides that distinguish it from the sweep's other runs.
        status: completed, failed, interrupted, running, dead (recorded as running, but no heartbeat) or waiting.
        num_epochs_done: epochs (or laps) trained; None: unknown.
        num_epochs: epochs (or laps) to train; None: unknown.
        epoch_time_s: the median of its epoch times on the slowest rank; None: no epoch is complete.
        age_s: seconds since its start, or its duration if it has ended; None: not started.
        last_line: the last line of its log.
        error: the reason why it failed.
    """

    number: int | None
    overrides: str
    status: str
    num_epochs_done: int | None = None
    num_epochs: int | None = None
    epoch_time_s: float | None = None
    age_s: float | None = None
    last_line: str = ""
    error: str = ""


@dataclass(frozen=True)
class SweepStatus:
    """The status of a sweep or a single run.

    Attributes:
        path: its directory.
        runs: all runs, ordered by number.
        is_over: whether it has ended.
    """

    path: Path
    runs: Sequence[RunStatus]
    is_over: bool

    def count(self, *statuses: str) -> int:
        return sum(run.status in statuses for run in self.runs)

    @property
    def time_left_s(self) -> float | None:
        """Estimated seconds until all runs are done, from the durations of completed runs; None: there are none."""
        durations = [run.age_s for run in self.runs if run.status == "completed" and run.age_s is not None]
        if not durations or self.is_over:
            return None
        typical_s = statistics.median(durations)
        running = sum(max(0.0, typical_s - (run.age_s or 0.0)) for run in self.runs if run.status == "running")
        return running + typical_s * self.count("waiting")


@dataclass
class Watcher:
    """Reads the status of a sweep or a run repeatedly.

    A run is alive if its files change between two calls of `look`. This holds even if the clocks of machines differ.

    Args:
        path: the directory of a sweep or a run.
        clock: returns seconds; only differences are used.
    """

    path: Path
    clock: Callable[[], float] = time.monotonic
    _states: dict[Path, tuple[Any, float, bool]] = field(default_factory=dict)

    def look(self) -> SweepStatus:
        """Read the files and return the current status."""
        if (self.path / RUN_FILE).exists():
            run = self._run(None, self.path, "")
            return SweepStatus(self.path, [run], self._is_over([run]))
        planned, run_dirs = read_plan(self.path), numbered_runs(self.path)
        runs = []
        for number in sorted({*planned, *run_dirs}):
            overrides = planned.get(number, "")
            if number in run_dirs and (run_dirs[number] / RUN_FILE).exists():
                runs.append(self._run(number, run_dirs[number], overrides))
            else:
                runs.append(RunStatus(number, overrides, "waiting"))
        return SweepStatus(self.path, runs, self._is_over(runs))

    def _is_over(self, runs: Sequence[RunStatus]) -> bool:
        statuses = [run.status for run in runs]
        silent_s, _ = self._observe(self.path, statuses)
        if "running" in statuses or owner_pid(self.path) is not None:
            return False
        if owner_is_gone(self.path):
            return True
        # A sweep on another machine writes no heartbeat between two runs, and its clock may differ.
        return silent_s >= DEAD_AFTER_S or (bool(runs) and not {"waiting", "dead"} & set(statuses))

    def _run(self, number: int | None, path: Path, overrides: str) -> RunStatus:
        try:
            record = RunRecord.read(path)
            status: str = record.status
            config = record.laptime_config
            message = "" if record.error is None else record.error.first_line
            num_epochs = num_laps(config["training"]) if config else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return RunStatus(number, overrides, "failed", error=f"run.json can't be read: {error}")
        is_here = not record.is_laptime_training and owner_pid(path) is not None  # LapTimer may write no heartbeat
        if status == "running" and not is_here and not self._is_alive(path):
            status = "dead"
        num_epochs_done, epoch_time_s = _epochs(path)
        overrides = overrides or record.run_label or ""
        return RunStatus(
            number,
            overrides,
            status,
            num_epochs_done,
            num_epochs,
            epoch_time_s,
            _age_s(record),
            _last_line(path),
            message,
        )

    def _is_alive(self, path: Path) -> bool:
        """Whether a run that is recorded as running is alive: its heartbeat is recent by this machine's clock, or it
        changes between polls."""
        beat = path / HEARTBEAT_FILE
        try:
            beaten_at = (beat if beat.exists() else path / RUN_FILE).stat().st_mtime
        except OSError:
            return False
        silent_s, has_moved = self._observe(beat, beaten_at)
        return 0 <= time.time() - beaten_at < DEAD_AFTER_S or (has_moved and silent_s < DEAD_AFTER_S)

    def _observe(self, path: Path, state: Any) -> tuple[float, bool]:
        """Return the seconds since the state of a path last changed, and whether it has ever changed."""
        now = self.clock()
        before, since, has_moved = self._states.get(path, (state, now, False))
        if before != state:
            since, has_moved = now, True
        self._states[path] = (state, since, has_moved)
        return now - since, has_moved


def _epochs(path: Path) -> tuple[int | None, float | None]:
    try:
        epochs = read_epochs(path)
        if epochs.empty:
            return 0, None
        slowest = combine_ranks_frame(last_attempts(epochs))["epoch_time_s"]
        return int(slowest.index.max()) + 1, float(slowest.median())
    except (OSError, ValueError, KeyError, TypeError):
        return None, None


def _age_s(record: RunRecord) -> float | None:
    try:
        start = parse_timestamp(record.attempts[-1].started_at or "")
        end = time.time() if record.status == "running" else parse_timestamp(record.ended_at or "")
        return max(0.0, end - start)
    except (KeyError, TypeError, ValueError, IndexError):
        return None


def _last_line(path: Path) -> str:
    try:
        with (path / LOG_FILE).open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _LAST_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    line = next((line for line in reversed(lines) if line.strip()), "")
    prefix = _PREFIX.match(line)
    return line if prefix is None else f"{prefix['time']} {line[prefix.end() :]}"
