"""Handles signals to the main process of a sweep, between two runs or while other processes run the jobs."""

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
    """End the sweep in order if a signal arrives between two runs; forward it to the processes of concurrent runs."""

    def handle(signum: int, frame: FrameType | None) -> None:
        if not runs_at_once or outcomes.stopped() is not None:
            sys.exit(128 + signum)
        outcomes.stop(128 + signum)
        if not (signum == signal.SIGINT and _is_in_the_foreground()):  # the terminal signals its whole process group
            for outcome in outcomes.all():
                if outcome.may_run_on_this_host and outcome.pid != os.getpid():
                    with suppress(ProcessLookupError):
                        os.kill(outcome.pid, signum)

    with handle_signals(handle):
        yield


def _is_in_the_foreground() -> bool:
    """Whether Ctrl-C on the terminal reaches this process and its children."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except (OSError, AttributeError):
        return False
