"""Peak memory of this process, and which others belong to it, from the system."""

import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil


def reset_peak_rss() -> None:
    """Count the peak anew, where the system lets a process do that (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_rss_bytes() -> int:
    """Peak resident memory of this process, data workers left out, since `reset_peak_rss`; since its start on macOS.

    On Linux not from getrusage, whose figure is inherited from the process that started this one.
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
    """The processes and all their descendants."""
    found: set[int] = set()
    left = list(pids)
    while left:
        pid = left.pop()
        if pid not in found:
            found.add(pid)
            left += _children(pid)
    return found


def _children(pid: int) -> list[int]:
    """From /proc, which has them by thread; psutil would read every process of the machine for that."""
    tasks = Path(f"/proc/{pid}/task")
    try:
        lists = [(task / "children").read_text() for task in tasks.iterdir()]
        return [int(child) for children in lists for child in children.split()]
    except OSError:
        pass
    if Path("/proc/self/task").is_dir():  # it is gone, or this kernel keeps no such list
        return []
    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.Error:
        return []
