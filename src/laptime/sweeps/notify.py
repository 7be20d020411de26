"""Telling somebody how a sweep goes, by a command of theirs (`sweep.notify`, `python -m laptime.watch --notify`)."""

import logging
import os
import subprocess
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)

_TIMEOUT_S = 60


def notify(command: str | None, event: str, folder: Path, message: str) -> None:
    """Run a command in the shell; if it fails, that is said and ends nothing.

    Args:
        command: finds what it is to tell in LAPTIME_EVENT, LAPTIME_DIR and LAPTIME_MESSAGE; None: nobody is told.
        event: run-failed, sweep-completed or sweep-failed.
        folder: of the sweep.
        message: one line.
    """
    if not command:
        return
    told = {"LAPTIME_EVENT": event, "LAPTIME_DIR": str(folder), "LAPTIME_MESSAGE": message}
    try:
        # Into a file: what it leaves in the background would hold a pipe open.
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            done = subprocess.run(
                command, shell=True, env=os.environ | told, timeout=_TIMEOUT_S, check=False,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
            )  # fmt: skip
            errors.seek(0)
            why = errors.read().strip().splitlines()
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        log.warning("sweep.notify: %s", error)
        return
    if done.returncode:
        log.warning("sweep.notify: ended with code %d%s", done.returncode, f" ({why[-1]})" if why else "")
