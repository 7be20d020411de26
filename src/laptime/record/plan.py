"""plan.json: all runs of a sweep, including those that have not started."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from laptime.record.files import PLAN_FILE, now, write_atomically
from laptime.text import escape_control_chars

_LARGEST_NUMBER = 10**9


def write_plan(sweep_dir: Path, swept: Mapping[int, str], starts: bool = False) -> None:
    """Write the runs of a sweep, and when it was last started or resumed.

    Args:
        swept: the swept values of each run, by number.
        starts: whether the sweep starts now; otherwise the recorded time is kept.
    """
    started_at = now() if starts else None
    if not starts:
        with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            started_at = json.loads((sweep_dir / PLAN_FILE).read_bytes())["started_at"]
    text = json.dumps({"started_at": started_at, "runs": swept}, indent=2)
    write_atomically(sweep_dir / PLAN_FILE, text.encode() + b"\n")


def read_plan(sweep_dir: Path) -> dict[int, str]:
    """Read the swept values of each run, by number. The result is empty if plan.json can't be read."""
    try:
        runs = json.loads((sweep_dir / PLAN_FILE).read_bytes())["runs"]
        swept_by_run = {int(number): escape_control_chars(str(swept)) for number, swept in runs.items()}
        return {number: swept for number, swept in swept_by_run.items() if 0 <= number <= _LARGEST_NUMBER}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
