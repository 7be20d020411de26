"""Peak memory of this process, from the system."""

import contextlib
import sys
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
