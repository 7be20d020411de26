"""Finds out how a process ended, for timers that nobody has closed."""

import sys

from laptime.record.schema import Status


def last_error() -> BaseException | None:
    """Return the uncaught exception of the script or notebook cell, which Python sets before atexit handlers run."""
    error: BaseException | None = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    return error


def is_interactive() -> bool:
    """Whether the code runs in a notebook or at Python's prompt."""
    return hasattr(sys, "ps1") or bool(sys.flags.interactive) or "ipykernel" in sys.modules


def status_of(error: BaseException | None) -> Status:
    """Return the status of a run that did not complete."""
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
