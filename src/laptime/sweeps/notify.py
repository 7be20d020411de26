"""Run the user's notification command (`sweep.notify`, `laptime watch --notify`)."""

import logging
import os
import subprocess
import tempfile
from pathlib import Path

log = logging.getLogger(__name__)

_TIMEOUT_S = 60


def notify(command: str | None, event: str, folder: Path, message: str) -> None:
    """Run a command in the shell. If it fails, a warning is logged.

    Args:
        command: the command, which gets LAPTIME_EVENT, LAPTIME_DIR and LAPTIME_MESSAGE in its environment; None:
            nothing is run.
        event: run-failed, sweep-completed or sweep-failed.
        folder: the directory of the sweep.
        message: a message of one line.
    """
    if not command:
        return
    variables = {"LAPTIME_EVENT": event, "LAPTIME_DIR": str(folder), "LAPTIME_MESSAGE": message}
    try:
        # stderr goes to a file, because a process that the command leaves in the background would keep a pipe open.
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            completed = subprocess.run(
                command, shell=True, env=os.environ | variables, timeout=_TIMEOUT_S, check=False,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
            )  # fmt: skip
            errors.seek(0)
            error_lines = errors.read().strip().splitlines()
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        log.warning("sweep.notify: %s", error)
        return
    if completed.returncode:
        log.warning(
            "sweep.notify: exited with code %d%s", completed.returncode, f" ({error_lines[-1]})" if error_lines else ""
        )
