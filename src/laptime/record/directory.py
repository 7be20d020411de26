"""Reserving the directory of a run or a sweep, and giving it back when the run turns out to be a mistake."""

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

# Whoever makes this file first has the directory. It says which process that is; of a sweep it is locked.
_RESERVED = ".laptime"
# What tells the directory of a run or a sweep.
_RUN_CONTENTS = {RUN_FILE, EPOCHS_FILE, PLAN_FILE, SWEEP_FILE, CHECKPOINT_DIR}
_used: dict[Path, TextIO] = {}
# The system's figure of when a process started may move by seconds when its clock is set.
_CLOCK_S = 10.0


class RunDir:
    """A directory that belongs to one run, or one sweep, alone: also when several start at once.

    Args:
        wanted: where `hydra.run.dir` or `hydra.sweep.dir` points.
        may_move: whether another name will do when that one is taken (by a run that started in the same second).
        key: the configuration's key for it.

    Attributes:
        path: absolute; exists.

    Raises:
        UserError: it can't be written, or it holds a run already.
    """

    def __init__(self, wanted: str, may_move: bool, key: str = "hydra.run.dir") -> None:
        wanted_path = expanded(key, wanted).absolute()
        number = 0
        while True:
            self.path = wanted_path.with_name(f"{wanted_path.name}_{number}") if number else wanted_path
            self._made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self._before = set(self.path.iterdir())
                if {each.name for each in self._before} & _RUN_CONTENTS:  # a copy may lack hidden files
                    raise FileExistsError
                (self.path / _RESERVED).touch(exist_ok=False)
                return
            except FileExistsError as error:
                if not self.path.is_dir():
                    raise UserError(f"{key}={wanted}: is a file. Choose another directory.") from error
                if not may_move:
                    raise UserError(f"{key}={wanted}: holds a run already. Choose another directory.") from error
                number += 1
            except OSError as error:
                raise UserError(
                    f"{key}={wanted}: can't be written ({error.strerror}). Choose another directory."
                ) from error

    def remove(self) -> None:
        """Take away what this run wrote, and the folders that were made for it."""
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
    """Take a directory that was reserved for this process, until it ends, and note that in it.

    Returns:
        The process that has it already, 0: one that can't be told; None: it is this one's now.
    """
    if path in _used:
        return None
    file = (path / _RESERVED).open("a+")
    try:
        if fcntl is not None:  # two that start at once can't both have it, and whoever dies gives it back
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        other = owner_pid(path)
    except OSError:
        file.close()
        return owner_pid(path) or 0
    if other is not None:
        file.close()
        return other
    own = psutil.Process()
    file.truncate(0)
    file.write(f"{own.pid} {own.create_time()} {hostname_hash()}\n")
    file.flush()
    _used[path] = file
    return None


def release(path: Path) -> None:
    """Keep a directory no longer that `use` took for this process; what it noted there stays."""
    file = _used.pop(path, None)
    if file is not None:
        file.close()


def hostname_hash() -> str:
    """Tells machines apart without naming them."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:12]


def owner_pid(path: Path) -> int | None:
    """Another process of this machine that uses a reserved directory; None: none does any more."""
    try:
        pid, started, host = (path / _RESERVED).read_text().split()
        process = psutil.Process(int(pid))
        is_it = abs(process.create_time() - float(started)) < _CLOCK_S and process.status() != psutil.STATUS_ZOMBIE
    except (OSError, ValueError, OverflowError, psutil.Error):
        return None
    return process.pid if is_it and host == hostname_hash() and process.pid != os.getpid() else None


def owner_is_gone(path: Path) -> bool:
    """Whether a process of this machine had a reserved directory, and is gone."""
    try:
        _, _, host = (path / _RESERVED).read_text().split()
    except (OSError, ValueError):
        return False
    return host == hostname_hash() and owner_pid(path) is None


def numbered_runs(sweep_dir: Path) -> dict[int, Path]:
    """The run directories of a sweep, which are named by their numbers."""
    named = [path for path in sweep_dir.iterdir() if path.name.isdecimal() and path.is_dir()]
    return {int(path.name): path for path in named if str(int(path.name)) == path.name}


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write what belongs together into a folder of a run directory, each file as a whole; returns the folder.

    Args:
        folder: is made where it isn't there, and taken away again where a file can't be written into it.
        files: content by name.

    Raises:
        OSError: with the file that can't be written.
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
    """A path with ~ expanded.

    Raises:
        UserError: there is no such user, or this one has no home folder: no HOME, and no entry in the system's list.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{key}={path}: no home folder is known. Set HOME, or give a path without ~.") from error
