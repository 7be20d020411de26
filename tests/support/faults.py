"""Real faults of the system for a test in pytest's own process: limits, and a disk that is full."""

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def resource_limit(limit: int, value: int) -> Iterator[None]:
    """A resource limit of this process, `resource.RLIMIT_FSIZE` for example."""
    before = resource.getrlimit(limit)
    resource.setrlimit(limit, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(limit, before)


@contextmanager
def no_free_descriptor() -> Iterator[None]:
    """No further file can be opened."""
    lowest_free = os.dup(0)
    os.close(lowest_free)
    with resource_limit(resource.RLIMIT_NOFILE, lowest_free):
        yield


@contextmanager
def small_disk(folder: Path, size: str = "8m") -> Iterator[Path]:
    """A file system of its own at a new folder. The test is skipped where none can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("file systems can't be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=60)


def fill(disk: Path) -> None:
    """Fill a disk to its last byte, with the file `filler`."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
