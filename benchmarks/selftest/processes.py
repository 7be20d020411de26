"""Each part in a process of its own: one that crashes, hangs or fills the device leaves the others alone."""

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

# How long a part that has said its last word may take to leave, and a killed one to be gone.
_LEAVES_WITHIN_S, _GONE_WITHIN_S = 10.0, 5.0
# So many lines of what a failed part has printed are kept.
_NUM_LINES = 20
_OUTPUT = "output.log"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(part: Part, setting: Setting, limit_s: float) -> Result:
    """Carry out one part, whatever becomes of it.

    Args:
        limit_s: seconds after which it is ended.

    Returns:
        What it noted; how it ended, also where it crashed.

    Raises:
        KeyboardInterrupt: Ctrl-C; the part has been ended.
    """
    result = Result(part.name, part.about)
    begin = time.monotonic()
    Path(setting.folder).mkdir(parents=True, exist_ok=True)
    with _started(_carry_out, (part.work, setting), part.name) as (process, connection):
        end = _read(result, process, connection, begin + limit_s)
        if end is None:
            last = f"; the last that it noted: {result.checks[-1].what}" if result.checks else ""
            end = Ended(error=f"not done within {limit_s:.0f} s: slow, or hanging{last}")
    if end.error is not None:
        with suppress(OSError):
            text = (Path(setting.folder) / _OUTPUT).read_text(encoding="utf-8", errors="replace")
            result.output = text.splitlines()[-_NUM_LINES:]
    result.wall_s = time.monotonic() - begin
    result.conclude(end)
    return result


def ask(question: Callable[..., Any], *arguments: Any, limit_s: float) -> Any:
    """What a function returns in a process of its own: a driver that hangs or crashes doesn't take this one along.

    Raises:
        RuntimeError: it raised something, crashed, or was not done in time.
    """
    with _started(_answer, (question, arguments), "question") as (process, connection):
        try:
            if not connection.poll(limit_s):
                raise RuntimeError(f"no answer within {limit_s:.0f} s")
            answer, error = connection.recv()
        except EOFError:
            process.join(_GONE_WITHIN_S)
            raise RuntimeError(f"the process that asked {_how(process.exitcode)}") from None
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
def signals_wait() -> Iterator[None]:
    """Ctrl-C and SIGTERM reach this process at the end of the block. Processes that are started within heed them when
    they have a group of their own: until then they are not meant for them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _started(target: Callable[..., None], job: Any, name: str) -> Iterator[tuple[BaseProcess, Connection]]:
    """A process, ended with all that it started at the end of the block."""
    started: tuple[BaseProcess, Connection] | None = None
    try:
        with signals_wait():  # a signal that came within is raised at its end, when the process is there
            started = fresh_processes.start(target, job, f"selftest {name}")
        yield started
    finally:
        if started is not None:
            _end(*started)


def _end(process: BaseProcess, connection: Connection) -> None:
    if process.pid is not None:
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(process.pid)
            for each in [*parent.children(recursive=True), parent]:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
    process.join(_GONE_WITHIN_S)  # one that a driver holds back can't be waited for
    connection.close()


def _read(result: Result, process: BaseProcess, connection: Connection, deadline: float) -> Ended | None:
    """Take in what a part notes. Returns how it ended; None: it has not until the deadline."""
    while (left := deadline - time.monotonic()) > 0 and connection.poll(left):
        try:
            noted = connection.recv()
        except EOFError:
            process.join(_LEAVES_WITHIN_S)
            return Ended(error=f"its process {_how(process.exitcode)}")
        match noted:
            case Check():
                result.checks.append(noted)
            case Figure():
                result.figures.append(noted)
            case Remark():
                result.remarks.append(noted)
            case Ended():
                process.join(_LEAVES_WITHIN_S)
                if process.exitcode != 0:
                    result.remarks.append(Remark(f"after its last word its process {_how(process.exitcode)}"))
                return noted
    return None


def _carry_out(connection: Connection, job: tuple[Work, Setting]) -> None:
    """The part's process. What it prints goes into a file in its folder."""
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
    """Ctrl-C is for the parent, which ends this process and its children; they end themselves when it is gone."""
    with suppress(OSError):
        os.setpgid(0, 0)
    for signum in _SIGNALS:
        signal.signal(signum, signal.SIG_IGN)  # one that came before
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def end_with_parent() -> None:
        with suppress(OSError):
            connection.poll(None)  # the parent sends nothing: this is its end
            os.killpg(0, signal.SIGKILL)

    threading.Thread(target=end_with_parent, name="heartbeat", daemon=True).start()


def _memory(setting: Setting) -> str | None:
    """How much of the device others use, where that may explain why something failed."""
    from selftest.runs import is_busy, used_by_others

    with suppress(Exception):  # a device that can't be started tells nothing
        used = used_by_others(setting.kind)
        if used is not None and is_busy(*used):
            return f"other processes use {used[0] / 1e9:.1f} of the device's {used[1] / 1e9:.1f} GB"
    return None


def _how(exit_code: int | None) -> str:
    if exit_code is None:
        return "did not end"
    return f"was killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"ended with code {exit_code}"
