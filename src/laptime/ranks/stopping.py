"""Stops a run early: after a signal or at a time limit, training stops after the current optimizer step."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from laptime.errors import Interrupted

# SLURM sends SIGUSR1 before a job's time limit, if the job asks for it (--signal=USR1@60).
# A terminal that is closed sends SIGHUP.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))


class TimeLimitReached(BaseException):
    """`training.time_limit_s` is over. Not an Exception, so that `except Exception` does not catch it."""


class StopRequest:
    """A request to stop, which can be made at any moment and is carried out after an optimizer step.

    Attributes:
        expired: whether the time limit is over. All ranks must agree on it, or some would wait for the others forever.
        immediate: whether a signal raises immediately (before and after training) instead of after the current step.
    """

    def __init__(self) -> None:
        self.immediate = True
        self.signum: int | None = None
        self.expired = False
        self._deadline: float | None = None

    def limit(self, seconds: float | None) -> None:
        """Request a stop this many seconds from now; None: never."""
        self._deadline = None if seconds is None else time.monotonic() + seconds

    @property
    def requested(self) -> bool:
        return self.signum is not None or self.expired

    @property
    def has_deadline(self) -> bool:
        return self._deadline is not None

    def is_overdue(self) -> bool:
        """Whether the time limit is over by this process's clock."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def act(self) -> None:
        """Carry out the request: raise Interrupted or TimeLimitReached."""
        if self.signum is not None:
            raise Interrupted(self.signum)
        raise TimeLimitReached

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """Signal handler: note the signal. Raise immediately if `immediate` is set, or if it is the second signal."""
        is_second, self.signum = self.signum is not None, signum
        if self.immediate or is_second:
            raise Interrupted(signum)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn signals into a StopRequest. Outside of the main thread, do nothing."""
    stop = StopRequest()
    with handle_signals(stop.handle):
        yield stop


@contextmanager
def handle_signals(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle SIGNALS with a function, and restore the earlier handlers afterwards. Only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_ignored = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    # nohup ignores SIGHUP: it must stay ignored.
    handled = [signum for signum in SIGNALS if not (is_ignored and signum.name == "SIGHUP")]
    earlier = {signum: signal.signal(signum, handle) for signum in handled}
    try:
        yield
    finally:
        for signum, handler in earlier.items():
            signal.signal(signum, handler)
