"""Keeps a timer's errors out of the training. A function that fails is skipped from then on, with one warning."""

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from laptime.errors import first_line

log = logging.getLogger("laptime")

T = TypeVar("T")


def _ignore(reason: str) -> None:
    """Do nothing, because there is nothing to clean up yet."""


class Guard:
    """Calls the functions of a timer, and skips those that have failed.

    Attributes:
        missing: the reason why a figure is not measured, by section or key of run.json.
        is_off: whether the timer has stopped.
        off_reason: the reason; empty: it has not stopped.
        on_give_up: removes the timer from the training; called once with the reason when the timer stops.
    """

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self.is_off = False
        self.off_reason = ""
        self.on_give_up: Callable[[str], None] = _ignore

    def attempt(self, key: str, function: Callable[[], T]) -> T | None:
        """Call a function; None if it fails, or if this key has failed before.

        Args:
            key: the section or key of run.json, or another name for what the function does.
        """
        if key in self.missing:
            return None
        try:
            return function()
        except Exception as error:
            self.mark_missing(key, f"{type(error).__name__}: {first_line(error)}")
            return None

    def mark_missing(self, key: str, reason: str, warn: bool = True) -> None:
        """Skip a figure from now on. The first reason is kept.

        Args:
            warn: whether to log a warning. The reason is recorded in any case.
        """
        if key not in self.missing:
            self.missing[key] = reason
            if warn:
                log.warning("laptime: %s is skipped: %s. The training continues.", key, reason.rstrip("."))

    def give_up(self, reason: str) -> None:
        """Stop the timer."""
        if not self.is_off:
            self.is_off, self.off_reason = True, reason
            log.warning("laptime: %s. The training continues without this timer.", reason.rstrip("."))
            with contextlib.suppress(Exception):
                self.on_give_up(reason)


class TimingError(Exception):
    """This training can't be timed. The message is for the user."""


def guarded(hook: Callable[..., Any]) -> Callable[..., None]:
    """Decorate a method that the training calls on an object with a `guard`.

    An error in it stops the timer. A stopped timer ignores the call.
    """

    @functools.wraps(hook)
    def safe(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.guard.is_off:
            return
        try:
            hook(self, *args, **kwargs)
        except TimingError as error:
            self.guard.give_up(str(error))
        except Exception as error:
            self.guard.give_up(f"can't time this training ({type(error).__name__}: {first_line(error)})")

    return safe
