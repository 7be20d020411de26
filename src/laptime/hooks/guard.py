"""Nothing that a timer does may make a training fail: what fails is left out from then on, with one warning."""

import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from laptime.errors import first_line

log = logging.getLogger("laptime")

T = TypeVar("T")


def _ignore(reason: str) -> None:
    """There is nothing to take back."""


class Guard:
    """What of a timer still works.

    Attributes:
        missing: why a part is not measured, by the section or key of run.json.
        is_off: whether the timer does nothing any more.
        on_give_up: is told why, once; nothing of the timer may stay behind in the training.
    """

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self.is_off = False
        self.on_give_up: Callable[[str], None] = _ignore

    def attempt(self, part: str, work: Callable[[], T]) -> T | None:
        """The result of some work; None where it fails, or has failed before.

        Args:
            part: a section or key of run.json, or what else is left out then.
        """
        if part in self.missing:
            return None
        try:
            return work()
        except Exception as error:
            self.mark_missing(part, f"{type(error).__name__}: {first_line(error)}")
            return None

    def mark_missing(self, part: str, reason: str, warn: bool = True) -> None:
        """A part is not measured from now on.

        Args:
            warn: whether the reason is news; else it is in the record alone.
        """
        if part not in self.missing:
            self.missing[part] = reason
            if warn:
                log.warning("laptime: %s: not measured: %s. The training goes on.", part, reason.rstrip("."))

    def give_up(self, reason: str) -> None:
        """Time nothing from now on."""
        if not self.is_off:
            self.is_off = True
            log.warning("laptime: %s. The training goes on without it.", reason.rstrip("."))
            with contextlib.suppress(Exception):
                self.on_give_up(reason)


class TimingError(Exception):
    """This training can't be timed; the message says why, in words for the user."""


def guarded(hook: Callable[..., Any]) -> Callable[..., None]:
    """A method that some training calls, of an object with a `guard`: does nothing where its timer is off, and turns it
    off where it fails."""

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
