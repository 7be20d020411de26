"""Finds the newest runs and sweeps, to which `latest` refers in every command.

They are ordered by the start times in their records, because copies and edits change modification times.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from laptime.errors import UserError
from laptime.record.files import (
    CHECKPOINT_DIR,
    EARLIER_DIR,
    LAST_CHECKPOINT,
    PLAN_FILE,
    RUN_FILE,
    SWEEP_FILE,
    parse_timestamp,
)
from laptime.record.walk import files_below

# Default folders of runs and sweeps in the current folder: Hydra's defaults.
RESULT_FOLDERS = (Path("outputs"), Path("multirun"))
SWEEP_FOLDERS = (Path("multirun"),)


def newest_runs(folders: Iterable[Path] = RESULT_FOLDERS, holding: str = RUN_FILE) -> list[Path]:
    """Return the run directories below some folders, at any depth, the last started or resumed first.

    An original comes before its copies. Runs without a readable record come last.

    Args:
        folders: the folders to search. Folders that don't exist are skipped.
        holding: the file that a run must contain to be returned.
    """
    return _by_start(run for folder in folders for run in _runs_below(folder) if (run / holding).exists())


def newest_run(key: str) -> Path:
    """Return the directory of the newest run that has a checkpoint.

    Args:
        key: the configuration key that names the checkpoint, for the message.

    Raises:
        UserError: no run has a checkpoint.
    """
    run_dirs = newest_runs(holding=f"{CHECKPOINT_DIR}/{LAST_CHECKPOINT}")
    if not run_dirs:
        raise UserError(f"{key}=latest: no run in outputs/ or multirun/ has a checkpoint.")
    return run_dirs[0]


def newest_sweeps(folders: Iterable[Path] = SWEEP_FOLDERS) -> list[Path]:
    """Return the sweep directories below some folders, at any depth, the last started or resumed first."""
    return _by_start(path.parent for folder in folders for path in files_below(folder, SWEEP_FILE))


def newest() -> list[Path]:
    """Return the sweeps and single runs of the current folder, the last started first."""
    return _by_start([*newest_sweeps(), *newest_runs(RESULT_FOLDERS[:1])])


def _runs_below(folder: Path) -> Iterator[Path]:
    for path in files_below(folder, RUN_FILE):
        above = path.parent.parent
        if above.name != EARLIER_DIR or not (above.parent / RUN_FILE).exists():
            yield path.parent


def _by_start(paths: Iterable[Path]) -> list[Path]:
    return sorted(sorted(set(paths)), key=_start, reverse=True)


def _start(path: Path) -> tuple[float, bool]:
    """Return when a run or sweep last started (`time.time()`; -inf: not known), and whether it is no copy."""
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
    """Start times from run.json or plan.json.

    Attributes:
        last: the last start, as `time.time()`; -inf: not known.
        run_dir: the directory in which the run was started; None: not known.
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
        state = path.stat()
        return _parse(path.absolute(), state.st_ino, state.st_mtime_ns, state.st_size)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return _Starts()


def _run_dir_of(content: Any) -> str | None:
    run_dir = content.get("run_dir") or (content.get("config") or {}).get("run_dir")  # older records have it in config
    return run_dir if isinstance(run_dir, str) else None


# Commands that wait for a run to start call this several times a second.
@lru_cache(maxsize=4096)
def _parse(path: Path, *state: int) -> _Starts:
    content = json.loads(path.read_bytes())
    starts = [part.get("started_at") for part in (content, *(content.get("attempts") or []))]
    return _Starts(max(map(_time, starts)), _run_dir_of(content))
