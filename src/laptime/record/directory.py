"""Creates the directory of a run or a sweep, and records which process uses it."""

import hashlib
import os
import platform
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import psutil

from laptime.errors import UserError
from laptime.record.files import CHECKPOINT_DIR, EPOCHS_FILE, PLAN_FILE, RUN_FILE, SWEEP_FILE, write_atomically

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# The process that creates this file first owns the directory. `claim` writes its pid into the file and locks it.
_RESERVED = ".laptime"
# A directory that contains any of these belongs to a run or a sweep.
_RUN_CONTENTS = {RUN_FILE, EPOCHS_FILE, PLAN_FILE, SWEEP_FILE, CHECKPOINT_DIR}
_claimed: dict[Path, TextIO] = {}
# The start time of a process may change by seconds when the system's clock is set.
_CLOCK_CHANGE_S = 10.0


class RunDir:
    """A directory of one run or one sweep. Concurrent runs never get the same one.

    Args:
        path: the value of `hydra.run.dir` or `hydra.sweep.dir`.
        may_move: whether to use another name if a run that started in the same second has that name.
        key: the configuration key of the path.

    Attributes:
        path: the absolute path of the directory, which exists.

    Raises:
        UserError: the directory can't be written, or already contains a run.
    """

    def __init__(self, path: str, may_move: bool, key: str = "hydra.run.dir") -> None:
        asked_path = expanded(key, path).absolute()
        number = 0
        while True:
            self.path = asked_path.with_name(f"{asked_path.name}_{number}") if number else asked_path
            self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self._before = set(self.path.iterdir())
                if {entry.name for entry in self._before} & _RUN_CONTENTS:  # copies may lack hidden files
                    raise FileExistsError
                (self.path / _RESERVED).touch(exist_ok=False)
                return
            except FileExistsError as error:
                if not self.path.is_dir():
                    raise UserError(
                        f"{key}={path}: must be a directory, not a file. Choose another directory."
                    ) from error
                if not may_move:
                    raise UserError(f"{key}={path}: already contains a run. Choose another directory.") from error
                number += 1
            except OSError as error:
                raise UserError(
                    f"{key}={path}: can't be written ({error.strerror}). Choose another directory."
                ) from error

    def remove(self) -> None:
        """Remove what this run wrote, and the folders that were created for it."""
        for entry in set(self.path.iterdir()) - self._before:
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        for folder in self._made:
            if any(folder.iterdir()):
                break
            folder.rmdir()


def claim(path: Path) -> int | None:
    """Claim a directory for this process until it ends or calls `release`, and record that in the directory.

    Returns:
        None: this process has it now. Otherwise the id of the process that has it, or 0 if the id is not known.
    """
    if path in _claimed:
        return None
    file = (path / _RESERVED).open("a+")
    try:
        if fcntl is not None:  # excludes concurrent claims; the system releases the lock if the process dies
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        owner = owner_pid(path)
    except OSError:
        file.close()
        return owner_pid(path) or 0
    if owner is not None:
        file.close()
        return owner
    process = psutil.Process()
    file.truncate(0)
    file.write(f"{process.pid} {process.create_time()} {hostname_hash()}\n")
    file.flush()
    _claimed[path] = file
    return None


def release(path: Path) -> None:
    """Release a directory that `claim` claimed. The file with the pid stays."""
    file = _claimed.pop(path, None)
    if file is not None:
        file.close()


def hostname_hash() -> str:
    """A hash that identifies this machine without its name."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:12]


def owner_pid(path: Path) -> int | None:
    """Return the id of another running process on this machine that has claimed a directory; None: there is none."""
    try:
        pid, started, host = (path / _RESERVED).read_text().split()
        process = psutil.Process(int(pid))
        has_same_start = abs(process.create_time() - float(started)) < _CLOCK_CHANGE_S
        is_owner = has_same_start and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, OverflowError, psutil.Error):
        return None
    return process.pid if is_owner and host == hostname_hash() and process.pid != os.getpid() else None


def owner_is_gone(path: Path) -> bool:
    """Whether a process on this machine had claimed a directory, and has ended."""
    try:
        _, _, host = (path / _RESERVED).read_text().split()
    except (OSError, ValueError):
        return False
    return host == hostname_hash() and owner_pid(path) is None


def numbered_runs(sweep_dir: Path) -> dict[int, Path]:
    """Return the run directories of a sweep, by number. Their names are the numbers."""
    named = [path for path in sweep_dir.iterdir() if path.name.isdecimal() and path.is_dir()]
    return {int(path.name): path for path in named if str(int(path.name)) == path.name}


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a folder of a run directory, each atomically, and return the folder.

    Args:
        folder: the folder. If it doesn't exist, it is created, and removed again if a file can't be written.
        files: the contents of each file, by file name.

    Raises:
        OSError: a file can't be written; names the file.
    """
    is_new = not folder.exists()
    folder.mkdir(exist_ok=True)
    try:
        for name, content in files.items():
            write_atomically(folder / name, content)
    except BaseException:
        if is_new:
            shutil.rmtree(folder)
        raise
    return folder


def expanded(key: str, path: str) -> Path:
    """Return a path with ~ expanded.

    Raises:
        UserError: the user doesn't exist or has no home folder (no HOME, and no entry in the system's user list).
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{key}={path}: the home folder is not known. Set HOME, or use a path without ~.") from error
