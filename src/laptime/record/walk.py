"""Looking through folders, links to folders included."""

import os
from collections.abc import Iterator
from pathlib import Path


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """What os.walk yields, with links to folders followed and each folder visited once.

    Yields:
        A folder, the names of the folders in it, and those of its files. A name that is removed is not visited.
    """
    seen: set[Path] = set()
    for place, names, files in os.walk(folder, followlinks=True):
        real = Path(place).resolve()
        if real in seen:  # a link to where the walk has been
            names.clear()
            continue
        seen.add(real)
        yield Path(place), names, files


def files_below(folder: Path, name: str) -> Iterator[Path]:
    """All files of that name, at any depth."""
    for place, _, files in walk(folder):
        if name in files:
            yield place / name
