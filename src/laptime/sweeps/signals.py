"""Signals that reach the process that has a sweep, between two runs or while runs go on in other processes."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from laptime.ranks.stopping import handle_signals
from laptime.sweeps.outcomes import OutcomeStore


@contextmanager
def forward_signals(outcomes: OutcomeStore, runs_at_once: bool) -> Iterator[None]:
    """A signal between two runs ends the sweep as one during a run does, with all that is said at its end; one that
    comes while runs go on in other processes is passed on to them."""

    def handle(signum: int, frame: FrameType | None) -> None:
        if not runs_at_once or outcomes.stopped() is not None:
            sys.exit(128 + signum)
        outcomes.stop(128 + signum)
        if not (signum == signal.SIGINT and _is_in_the_foreground()):  # there the terminal has told all of them
            for each in outcomes.all():
                if each.may_run_on_this_host and each.pid != os.getpid():
                    with suppress(ProcessLookupError):
                        os.kill(each.pid, signum)

    with handle_signals(handle):
        yield


def _is_in_the_foreground() -> bool:
    """Whether Ctrl-C on a terminal reaches this process, and then its children too."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except (OSError, AttributeError):
        return False
