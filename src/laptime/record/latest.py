"""Which runs and sweeps are the newest: what `latest` means to every command.

Their records say when they started. The times of files and folders say when they were touched or copied.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from laptime.record.files import EARLIER_DIR, PLAN_FILE, RUN_FILE, SWEEP_FILE, parse_timestamp
from laptime.record.walk import files_below

# Where runs and sweeps are in the current folder, unless told otherwise: Hydra's usual places.
RESULT_FOLDERS = (Path("outputs"), Path("multirun"))
SWEEP_FOLDERS = (Path("multirun"),)


def newest_runs(folders: Iterable[Path] = RESULT_FOLDERS, holding: str = RUN_FILE) -> list[Path]:
    """Run directories below some folders, at any depth, the one that started last first.

    A run that was started again, or resumed by its sweep, counts by its last start. Of copies the original comes first,
    and whatever has no record that can be read comes last.

    Args:
        folders: those that don't exist are passed over.
        holding: a file that the run has to have.
    """
    return _by_start(run for folder in folders for run in _runs_below(folder) if (run / holding).exists())


def newest_sweeps(folders: Iterable[Path] = SWEEP_FOLDERS) -> list[Path]:
    """Sweep directories below some folders, at any depth, the one that was started or resumed last first."""
    return _by_start(path.parent for folder in folders for path in files_below(folder, SWEEP_FILE))


def newest() -> list[Path]:
    """The sweeps, and the runs that belong to none, of the current folder, the one that started last first."""
    return _by_start([*newest_sweeps(), *newest_runs(RESULT_FOLDERS[:1])])


def _runs_below(folder: Path) -> Iterator[Path]:
    for path in files_below(folder, RUN_FILE):
        above = path.parent.parent
        if above.name != EARLIER_DIR or not (above.parent / RUN_FILE).exists():
            yield path.parent


def _by_start(paths: Iterable[Path]) -> list[Path]:
    return sorted(sorted(set(paths)), key=_start, reverse=True)


def _start(path: Path) -> tuple[float, bool]:
    """When a run, or a sweep, started last (as `time.time()`; -inf: it doesn't say), and whether that was here."""
    if not (path / SWEEP_FILE).exists():
        return _start_of_run(path)
    return max([_start_of_sweep(path), *map(_start_of_run, _runs_below(path))])


def _start_of_run(run_dir: Path) -> tuple[float, bool]:
    starts = _read(run_dir / RUN_FILE)
    return starts.last, starts.run_dir == str(run_dir.absolute())


def _start_of_sweep(sweep_dir: Path) -> tuple[float, bool]:
    return _read(sweep_dir / PLAN_FILE).last, False


@dataclass(frozen=True)
class _Starts:
    """What a file says of its run or sweep.

    Attributes:
        last: when it started last, as `time.time()`; -inf: it doesn't say.
        run_dir: where the run was made; None: it doesn't say.
    """

    last: float = -math.inf
    run_dir: str | None = None


def _time(text: Any) -> float:
    try:
        return parse_timestamp(text)
    except (ValueError, TypeError, OverflowError, OSError):
        return -math.inf


def _read(path: Path) -> _Starts:
    try:
        seen = path.stat()
        return _parsed(path.absolute(), seen.st_ino, seen.st_mtime_ns, seen.st_size)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return _Starts()


def _run_dir_of(content: Any) -> str | None:
    run_dir = content.get("run_dir") or (content.get("config") or {}).get("run_dir")  # there in an older record
    return run_dir if isinstance(run_dir, str) else None


# Whoever waits for a run to start looks several times a second.
@lru_cache(maxsize=4096)
def _parsed(path: Path, *state: int) -> _Starts:
    content = json.loads(path.read_bytes())
    starts = [each.get("started_at") for each in (content, *(content.get("attempts") or []))]
    return _Starts(max(map(_time, starts)), _run_dir_of(content))
