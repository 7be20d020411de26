"""Starts the ranks' processes: forks of a server process that has loaded torch and Lightning but computed nothing."""

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

from laptime import starting
from laptime.config import vouching
from laptime.machine.environment import settings
from laptime.machine.sockets import use_short_socket_dir

# The environment variables with which the forkserver loaded torch; None: the forkserver has not been started.
_loaded_with: dict[str, str] | None = None


def context() -> BaseContext:
    """Return the start method: forkserver, whose processes start in a fraction of a second, or spawn.

    Spawn is used on macOS, where forking isn't safe, and when environment variables that libraries read while they load
    have changed since the forkserver loaded them.
    """
    global _loaded_with
    if sys.platform != "linux" or _loaded_with not in (None, settings()):
        return multiprocessing.get_context("spawn")
    _loaded_with = settings()
    use_short_socket_dir()
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["laptime.runner.preloaded"])
    return server


def start(target: Callable[..., None], job: Any, name: str) -> tuple[BaseProcess, Connection]:
    """Start a process that calls `target(connection, job)`; return it and the other end of the connection."""
    if multiprocessing.get_start_method(allow_none=True) not in (None, *multiprocessing.get_all_start_methods()):
        # joblib 1.6's worker processes have a start method that is unknown in their child processes.
        # https://github.com/joblib/loky/pull/153
        multiprocessing.set_start_method(None, force=True)
    start_context = context()
    connection, child_connection = start_context.Pipe()
    arguments = (target, vouching.state(), child_connection, job)
    process = start_context.Process(target=_call, args=arguments, name=name)  # type: ignore[attr-defined]
    # A child would import the caller's script as its __main__, which ranks don't need. Python 3.11 documents this
    # ("Safe importing of main module"); not reported.
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    starting.erase()
    try:
        process.start()
    finally:
        sys.modules["__main__"] = main
    child_connection.close()
    return process, connection


def _call(target: Callable[..., None], state: vouching.State, connection: Connection, job: Any) -> None:
    vouching.restore(state)
    target(connection, job)


def preload() -> None:
    """Start the forkserver, so that it loads torch while this process does the same."""
    if context().get_start_method() == "forkserver":
        forkserver.ensure_running()
        atexit.unregister(_end)
        atexit.register(_end)


def _end() -> None:
    """Kill the forkserver at exit, because it would take another second or two to end by itself.

    Python 3.11 has no public access to its process ID; not reported.
    """
    pid = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if pid is not None:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
