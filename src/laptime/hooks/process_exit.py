"""How a process ended that nobody has told of."""

import sys

from laptime.record.schema import Status


def last_error() -> BaseException | None:
    """What has ended the script, or a cell of a notebook: Python notes it before anything that is done at exit."""
    error: BaseException | None = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    return error


def is_interactive() -> bool:
    """Whether somebody types, in a notebook or at Python's prompt."""
    return hasattr(sys, "ps1") or bool(sys.flags.interactive) or "ipykernel" in sys.modules


def status_of(error: BaseException | None) -> Status:
    """How a run ended that an error has ended."""
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
