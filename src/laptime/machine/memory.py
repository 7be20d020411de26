"""Peak memory of this process, and the process trees of ranks."""

import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil


def reset_peak_rss() -> None:
    """Reset the peak memory of this process. Only Linux supports that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss_bytes() -> int:
    """Return the peak resident memory of this process, without its data workers, since `reset_peak_rss`.

    On macOS, it is the peak since the process started.

    On Linux, getrusage can't be used: a process inherits the peak of the process that started it.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, StopIteration):
            lines = Path("/proc/self/status").read_text().splitlines()
            return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    elif sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(psutil.Process().memory_info().rss)


def process_trees(pids: Iterable[int]) -> set[int]:
    """Return the ids of these processes and all their descendants."""
    visited: set[int] = set()
    pending = list(pids)
    while pending:
        pid = pending.pop()
        if pid not in visited:
            visited.add(pid)
            pending += _children(pid)
    return visited


def _children(pid: int) -> list[int]:
    """Return the children of a process. /proc lists them by thread; psutil would read all processes of the machine."""
    tasks = Path(f"/proc/{pid}/task")
    try:
        lists = [(task / "children").read_text() for task in tasks.iterdir()]
        return [int(child) for children in lists for child in children.split()]
    except OSError:
        pass
    if Path("/proc/self/task").is_dir():  # the process has ended, or this kernel has no such list
        return []
    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.Error:
        return []
