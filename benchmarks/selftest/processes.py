"""Each part in a process of its own: one that crashes, hangs or fills the device leaves the others alone."""

import os
import signal
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from laptime import fresh_processes
from selftest.part import Check, Ended, Figure, Notes, Part, Result, Setting, Skipped, Work, missing_package

# How long a part that has said its last word may take to leave.
_LEAVES_WITHIN_S = 10.0


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
    process, connection = fresh_processes.start(_carry_out, (part.work, setting), f"selftest {part.name}")
    end = Ended(error=f"it was not done within {limit_s:.0f} s")
    try:
        while (left := begin + limit_s - time.monotonic()) > 0:
            if not connection.poll(left):
                break
            try:
                noted = connection.recv()
            except EOFError:
                process.join(10)
                end = Ended(error=f"its process {_how(process.exitcode)}")
                break
            if isinstance(noted, Ended):
                end = noted
                process.join(_LEAVES_WITHIN_S)
                break
            if isinstance(noted, Check):
                result.checks.append(noted)
            elif isinstance(noted, Figure):
                result.figures.append(noted)
            else:
                result.remarks.append(noted)
    finally:
        _end(process.pid)
        process.join()
        connection.close()
    result.wall_s = time.monotonic() - begin
    result.conclude(end)
    return result


def _carry_out(connection: Connection, job: tuple[Work, Setting]) -> None:
    """The part's process. What it prints goes into a file in its folder."""
    work, setting = job
    with suppress(OSError):
        os.setpgid(0, 0)  # Ctrl-C is for the parent, which ends this process and its children
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it was ignored until now
    os.chdir(setting.folder)
    output = os.open("output.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    notes = Notes(connection)
    error = skipped = None
    try:
        work(setting, notes)
    except Skipped as why:
        skipped = str(why)
    except BaseException as raised:
        import traceback

        traceback.print_exc()
        package = missing_package(raised)
        if package is not None:
            skipped = f"{package} is not installed"
        else:
            error = f"{type(raised).__name__}: {(str(raised).strip().splitlines() or [''])[0]}"
    notes.ended(Ended(error, skipped, _memory(setting)))
    sys.stdout.flush()


def _memory(setting: Setting) -> str | None:
    """How much of the device others use, where that may explain why something failed."""
    from selftest.runs import is_busy, used_by_others

    with suppress(Exception):  # a device that can't be started tells nothing
        others, total = used_by_others(setting.kind)
        if is_busy(others, total):
            return f"other processes use {others / 1e9:.1f} of the device's {total / 1e9:.1f} GB"
    return None


def _how(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}"
    return f"ended with code {exit_code}"


def _end(pid: int | None) -> None:
    """End a part's process and all that it started."""
    if pid is None:
        return
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for each in [*process.children(recursive=True), process]:
            with suppress(psutil.NoSuchProcess):
                each.kill()
