"""Run each part in its own process, so that one that crashes, hangs or fills the device doesn't affect the others."""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

from laptime.runner import fresh_processes
from selftest.part import (
    Check,
    Ended,
    Figure,
    Notes,
    Part,
    Remark,
    Result,
    Setting,
    Skipped,
    Work,
    missing_package,
)

# Time limits for the exit of a finished process, and of a killed one.
_EXIT_LIMIT_S, _KILL_LIMIT_S = 10.0, 5.0
# Number of output lines to keep of a failed part.
_NUM_LINES = 20
_OUTPUT = "output.log"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(part: Part, setting: Setting, limit_s: float) -> Result:
    """Run one part.

    Args:
        limit_s: time limit in seconds. Then the part is killed.

    Returns:
        The result, even if the part crashed or hung.

    Raises:
        KeyboardInterrupt: After Ctrl-C. The part has been killed.
    """
    result = Result(part.name, part.about)
    begin = time.monotonic()
    Path(setting.folder).mkdir(parents=True, exist_ok=True)
    with _started(_run_part, (part.work, setting), part.name) as (process, connection):
        end = _read(result, process, connection, begin + limit_s)
        if end is None:
            last = f"; its last check: {result.checks[-1].what}" if result.checks else ""
            end = Ended(error=f"timed out after {limit_s:.0f} s: slow or hanging{last}")
    if end.error is not None:
        with suppress(OSError):
            text = (Path(setting.folder) / _OUTPUT).read_text(encoding="utf-8", errors="replace")
            result.output = text.splitlines()[-_NUM_LINES:]
    result.wall_s = time.monotonic() - begin
    result.conclude(end)
    return result


def ask(question: Callable[..., Any], *arguments: Any, limit_s: float) -> Any:
    """Call a function in a new process, and return its result. A driver that hangs or crashes can't harm this process.

    Raises:
        RuntimeError: The function raised an exception, crashed, or timed out.
    """
    with _started(_answer, (question, arguments), "question") as (process, connection):
        try:
            if not connection.poll(limit_s):
                raise RuntimeError(f"no answer within {limit_s:.0f} s")
            answer, error = connection.recv()
        except EOFError:
            process.join(_KILL_LIMIT_S)
            raise RuntimeError(f"its process {_describe_exit(process.exitcode)}") from None
    if error is not None:
        raise RuntimeError(error)
    return answer


def _answer(connection: Connection, job: tuple[Callable[..., Any], tuple[Any, ...]]) -> None:
    question, arguments = job
    _become_own_group(connection)
    try:
        connection.send((question(*arguments), None))
    except BaseException as error:
        connection.send((None, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"))


@contextmanager
def blocked_signals() -> Iterator[None]:
    """Block SIGINT and SIGTERM until the end of the block.

    Processes that are started inside the block inherit that. They unblock the signals once they have their own process
    group, because signals before that are meant for this process.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def _started(target: Callable[..., None], job: Any, name: str) -> Iterator[tuple[BaseProcess, Connection]]:
    """Start a process. At the end of the block, kill it and its children."""
    started: tuple[BaseProcess, Connection] | None = None
    try:
        with blocked_signals():  # a signal is raised at the end of the block, when `started` is set
            started = fresh_processes.start(target, job, f"selftest {name}")
        yield started
    finally:
        if started is not None:
            _end(*started)


def _end(process: BaseProcess, connection: Connection) -> None:
    if process.pid is not None:
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(process.pid)
            for victim in [*parent.children(recursive=True), parent]:
                with suppress(psutil.NoSuchProcess):
                    victim.kill()
    process.join(_KILL_LIMIT_S)  # a process that is blocked in a driver may never end
    connection.close()


def _read(result: Result, process: BaseProcess, connection: Connection, deadline: float) -> Ended | None:
    """Add a part's notes to its result. Returns how the part ended; None: it is still running at the deadline."""
    while (remaining_s := deadline - time.monotonic()) > 0 and connection.poll(remaining_s):
        try:
            note = connection.recv()
        except EOFError:
            process.join(_EXIT_LIMIT_S)
            return Ended(error=f"its process {_describe_exit(process.exitcode)}")
        match note:
            case Check():
                result.checks.append(note)
            case Figure():
                result.figures.append(note)
            case Remark():
                result.remarks.append(note)
            case Ended():
                process.join(_EXIT_LIMIT_S)
                if process.exitcode != 0:
                    exit_text = _describe_exit(process.exitcode)
                    result.remarks.append(Remark(f"after the end of the part its process {exit_text}"))
                return note
    return None


def _run_part(connection: Connection, job: tuple[Work, Setting]) -> None:
    """Run in the part's process. The output goes into a file in its folder."""
    work, setting = job
    _become_own_group(connection)
    os.chdir(setting.folder)
    output = os.open(_OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    notes = Notes(connection)
    error = skipped = None
    try:
        work(setting, notes)
    except Skipped as why:
        skipped = str(why)
    except BaseException as raised:
        traceback.print_exc()
        package = missing_package(raised)
        if package is not None:
            skipped = f"{package} is not installed"
        else:
            error = f"{type(raised).__name__}: {(str(raised).strip().splitlines() or [''])[0]}"
    sys.stdout.flush()
    notes.ended(Ended(error, skipped, _memory(setting)))


def _become_own_group(connection: Connection) -> None:
    """Leave the terminal's process group: Ctrl-C is for the parent, which kills this process and its children.

    If the parent dies, a thread kills this process group.
    """
    with suppress(OSError):
        os.setpgid(0, 0)
    for signum in _SIGNALS:
        signal.signal(signum, signal.SIG_IGN)  # discards signals that arrived while they were blocked
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def end_with_parent() -> None:
        with suppress(OSError):
            connection.poll(None)  # returns only when the parent has died, because the parent sends nothing
            os.killpg(0, signal.SIGKILL)

    threading.Thread(target=end_with_parent, name="heartbeat", daemon=True).start()


def _memory(setting: Setting) -> str | None:
    """How much of the device's memory other processes use, if it is enough to explain a failure."""
    from selftest.runs import is_busy, used_by_others

    with suppress(Exception):  # the device can't be initialized
        used = used_by_others(setting.kind)
        if used is not None and is_busy(*used):
            return f"other processes use {used[0] / 1e9:.1f} of the device's {used[1] / 1e9:.1f} GB"
    return None


def _describe_exit(exit_code: int | None) -> str:
    if exit_code is None:
        return "did not end"
    return f"was killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"ended with code {exit_code}"
