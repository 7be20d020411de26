"""Real faults of the system, for tests in pytest's own process: resource limits and full disks."""

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def resource_limit(limit: int, value: int) -> Iterator[None]:
    """Set a resource limit of this process, e.g. `resource.RLIMIT_FSIZE`, inside the block."""
    soft_and_hard = resource.getrlimit(limit)
    resource.setrlimit(limit, (value, soft_and_hard[1]))
    try:
        yield
    finally:
        resource.setrlimit(limit, soft_and_hard)


@contextmanager
def no_free_descriptor() -> Iterator[None]:
    """Let no further file be opened inside the block."""
    lowest_free = os.dup(0)
    os.close(lowest_free)
    with resource_limit(resource.RLIMIT_NOFILE, lowest_free):
        yield


@contextmanager
def small_disk(folder: Path, size: str = "8m") -> Iterator[Path]:
    """Mount a small file system at a new folder. Skips the test where that is not permitted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user can't mount file systems")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=60)


def fill(disk: Path) -> None:
    """Fill a disk to its last byte with the file `filler`."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
