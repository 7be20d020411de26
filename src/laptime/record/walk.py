"""Walks through folders, following symbolic links."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from laptime.errors import UserError


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walk like os.walk, but follow symbolic links and visit each folder once.

    Yields:
        A folder, the names of its folders and the names of its files. Folders that the caller removes are skipped.
    """
    visited: set[Path] = set()
    for path, names, files in os.walk(folder, followlinks=True):
        real = Path(path).resolve()
        if real in visited:  # a link to a visited folder
            names.clear()
            continue
        visited.add(real)
        yield Path(path), names, files


def files_below(folder: Path, name: str) -> Iterator[Path]:
    """Yield all files with this name, at any depth."""
    for path, _, files in walk(folder):
        if name in files:
            yield path / name


def require_folders(folders: Iterable[Path]) -> None:
    """Raises: UserError: one of the folders does not exist."""
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder. Pass run or sweep directories.")
