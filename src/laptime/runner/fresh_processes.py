"""Where the ranks' processes come from: copies of one that has loaded torch and Lightning but computed nothing."""

import atexit
import contextlib
import multiprocessing
import os
import signal
import sys
import types
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from typing import Any

from laptime.machine.environment import settings
from laptime.machine.sockets import use_short_socket_dir

# Environment variables that the forkserver's torch was loaded with; None: it has not been started.
_loaded_with: dict[str, str] | None = None


def context() -> BaseContext:
    """A forkserver, whose copies start in a fraction of a second; new processes on macOS, where that isn't safe, and
    where variables that libraries read while they load are others than when the forkserver loaded them."""
    global _loaded_with
    if sys.platform != "linux" or _loaded_with not in (None, settings()):
        return multiprocessing.get_context("spawn")
    _loaded_with = settings()
    use_short_socket_dir()
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["laptime.runner.rank_process"])
    return server


def start(target: Callable[..., None], job: Any, name: str) -> tuple[BaseProcess, Connection]:
    """Start a process that calls `target(connection, job)`; returned with the other end of its connection."""
    if multiprocessing.get_start_method(allow_none=True) not in (None, *multiprocessing.get_all_start_methods()):
        # Of joblib 1.6's processes: a child would not know it. https://github.com/joblib/loky/pull/153
        multiprocessing.set_start_method(None, force=True)
    fresh = context()
    ours, theirs = fresh.Pipe()
    process = fresh.Process(target=target, args=(theirs, job), name=name)  # type: ignore[attr-defined]
    # A child would run the caller's script once more to have its __main__; ranks need nothing of it. Python documents
    # it so ("Safe importing of main module"); not reported upstream.
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        process.start()
    finally:
        sys.modules["__main__"] = main
    theirs.close()
    return process, ours


def preload() -> None:
    """Let the forkserver load torch while this process does the same."""
    if context().get_start_method() == "forkserver":
        forkserver.ensure_running()
        atexit.unregister(_end)
        atexit.register(_end)


def _end() -> None:
    """End the forkserver with this process: by itself it takes another second or two. Python 3.11 has no public way to
    its process; not reported upstream."""
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if pid is not None:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
