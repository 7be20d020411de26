"""How a run is asked to end early: by a signal or a time limit, heeded between two optimizer steps."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from laptime.errors import Interrupted

# SIGUSR1 is what SLURM sends where a job asks to be warned before its time is over (--signal=USR1@60).
# SIGHUP is a terminal that was closed.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))


class TimeLimitReached(BaseException):
    """`training.time_limit_s` is over. No Exception: whoever catches those goes on."""


class StopRequest:
    """A wish to stop, noted at any moment and carried out where it does no harm.

    Attributes:
        expired: whether the time limit is over; several ranks must agree on it, or some would wait for ever.
        immediate: whether a signal raises at once (before and after training) instead of waiting for a step's end.
    """

    def __init__(self) -> None:
        self.immediate = True
        self.signum: int | None = None
        self.expired = False
        self._deadline: float | None = None

    def limit(self, seconds: float | None) -> None:
        """Ask to stop so many seconds from now; None: never."""
        self._deadline = None if seconds is None else time.monotonic() + seconds

    @property
    def requested(self) -> bool:
        return self.signum is not None or self.expired

    @property
    def has_deadline(self) -> bool:
        return self._deadline is not None

    def is_overdue(self) -> bool:
        """Whether this process's clock says that the time limit is over."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def act(self) -> None:
        """Raise what was asked for: Interrupted or TimeLimitReached."""
        if self.signum is not None:
            raise Interrupted(self.signum)
        raise TimeLimitReached

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler: note it, or raise at once where that is asked for or the signal comes a second time."""
        again, self.signum = self.signum is not None, signum
        if self.immediate or again:
            raise Interrupted(signum)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """The signals become a StopRequest, in the main thread; the handlers from before come back afterwards."""
    stop = StopRequest()
    with handle_signals(stop.handle):
        yield stop


@contextmanager
def handle_signals(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """The signals are handled so, in the main thread; the handlers from before come back afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # nohup has SIGHUP ignored already: then it stays so.
    heeded = [each for each in SIGNALS if each.name != "SIGHUP" or signal.getsignal(each) is not signal.SIG_IGN]
    before = {signum: signal.signal(signum, handle) for signum in heeded}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
