"""Where the ranks' processes come from: copies of one that has loaded torch and Lightning but computed nothing."""

import multiprocessing
import sys
from multiprocessing import forkserver
from multiprocessing.context import BaseContext


def context() -> BaseContext:
    """A forkserver, whose copies start in a fraction of a second; on macOS, where that isn't safe, new processes."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["laptime.rank_process"])
    return server


def load_ahead() -> None:
    """Let the forkserver load torch while this process does the same."""
    if context().get_start_method() == "forkserver":
        forkserver.ensure_running()
