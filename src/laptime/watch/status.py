"""What can be seen of a sweep, or a run, from its files alone: also by another process, or another machine."""

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
from laptime.record.plan import read_plan
from laptime.record.run_record import RunRecord

_LAST_BYTES = 4096
# Of a line in train.log the time is enough here.
_PREFIX = re.compile(r"\[\S+ (?P<time>[\d:]+),\d+\](\[[^\]]*\])* ")


@dataclass(frozen=True)
class RunStatus:
    """A run as its files show it.

    Attributes:
        number: in its sweep; None: a run by itself.
        swept: what tells it from the others.
        status: completed, failed, interrupted, running, dead (it says it runs, and gives no sign of life) or waiting.
        done, epochs: epochs (or laps) trained and wanted; None: not known.
        epoch_time_s: median of its epochs so far, the slowest rank's; None: there is none.
        age_s: seconds since it started, or that it took where it has ended; None: it has not started.
        last_line: of its log.
        error: why it failed.
    """

    number: int | None
    swept: str
    status: str
    done: int | None = None
    epochs: int | None = None
    epoch_time_s: float | None = None
    age_s: float | None = None
    last_line: str = ""
    error: str = ""


@dataclass(frozen=True)
class SweepStatus:
    """A sweep, or a run by itself, at one moment.

    Attributes:
        path: its directory.
        runs: in their order, those that have not started last.
        is_over: nothing goes on any more.
    """

    path: Path
    runs: Sequence[RunStatus]
    is_over: bool

    def count(self, *statuses: str) -> int:
        return sum(run.status in statuses for run in self.runs)

    @property
    def time_left_s(self) -> float | None:
        """Seconds until all runs are done, if those left take what the completed ones took; None: none is completed."""
        took = [run.age_s for run in self.runs if run.status == "completed" and run.age_s is not None]
        if not took or self.is_over:
            return None
        typical_s = statistics.median(took)
        running = sum(max(0.0, typical_s - (run.age_s or 0.0)) for run in self.runs if run.status == "running")
        return running + typical_s * self.count("waiting")


@dataclass
class Watcher:
    """Looks at a directory again and again; what has moved in between is a sign of life, whatever the clocks say.

    Args:
        path: of a sweep, or of a run.
        clock: seconds; only differences count.
    """

    path: Path
    clock: Callable[[], float] = time.monotonic
    _states: dict[Path, tuple[Any, float, bool]] = field(default_factory=dict)

    def look(self) -> SweepStatus:
        """What there is now."""
        if (self.path / RUN_FILE).exists():
            run = self._run(None, self.path, "")
            return SweepStatus(self.path, [run], self._is_over([run]))
        planned, here = read_plan(self.path), numbered_runs(self.path)
        runs = []
        for number in sorted({*planned, *here}):
            swept = planned.get(number, "")
            if number in here and (here[number] / RUN_FILE).exists():
                runs.append(self._run(number, here[number], swept))
            else:
                runs.append(RunStatus(number, swept, "waiting"))
        return SweepStatus(self.path, runs, self._is_over(runs))

    def _is_over(self, runs: Sequence[RunStatus]) -> bool:
        statuses = [run.status for run in runs]
        silent_s, _ = self._seen(self.path, statuses)
        if "running" in statuses or owner_pid(self.path) is not None:
            return False
        if owner_is_gone(self.path):
            return True
        # Between two runs of a sweep on another machine nothing beats, and one that seems dead may have another clock.
        return silent_s >= DEAD_AFTER_S or (bool(runs) and not {"waiting", "dead"} & set(statuses))

    def _run(self, number: int | None, path: Path, swept: str) -> RunStatus:
        try:
            record = RunRecord.read(path)
            status: str = record.status
            config = record.laptime_config
            message = "" if record.error is None else record.error.first_line
            epochs = config["training"]["epochs"] if config else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return RunStatus(number, swept, "failed", error=f"run.json can't be read: {error}")
        is_here = not record.is_laptime_training and owner_pid(path) is not None  # that may have no heartbeat
        if status == "running" and not is_here and not self._is_alive(path):
            status = "dead"
        done, epoch_time_s = _epochs(path)
        swept = swept or record.run_label or ""
        return RunStatus(number, swept, status, done, epochs, epoch_time_s, _age_s(record), _last_line(path), message)

    def _is_alive(self, path: Path) -> bool:
        """Whether a run that says so runs: its heartbeat is young by this machine's clock, or moves."""
        beat = path / HEARTBEAT_FILE
        try:
            beaten_at = (beat if beat.exists() else path / RUN_FILE).stat().st_mtime
        except OSError:
            return False
        silent_s, has_moved = self._seen(beat, beaten_at)
        return 0 <= time.time() - beaten_at < DEAD_AFTER_S or (has_moved and silent_s < DEAD_AFTER_S)

    def _seen(self, path: Path, state: Any) -> tuple[float, bool]:
        """For how many seconds something has looked the same, and whether it ever looked otherwise."""
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
