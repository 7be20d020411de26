"""Where the ranks' processes come from: copies of one that has loaded torch and Lightning but computed nothing."""

import atexit
import contextlib
import multiprocessing
import os
import signal
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
        atexit.unregister(_end)
        atexit.register(_end)


def _end() -> None:
    """End the forkserver with this process: by itself it takes another second or two."""
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if pid is not None:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
