"""Reserving the directory of a run, and giving it back when the run turns out to be a mistake."""

import shutil
from pathlib import Path

from laptime.errors import UserError
from laptime.record import RUN_FILE


class RunDir:
    """A directory that belongs to one run alone.

    Args:
        wanted: where `hydra.run.dir` points.
        may_move: whether another name will do when that one is taken (by a run that started in the same second).

    Attributes:
        path: absolute; exists.

    Raises:
        UserError: it can't be written, or it holds a run already.
    """

    def __init__(self, wanted: str, may_move: bool) -> None:
        path = Path(wanted).expanduser().absolute()
        number = 0
        while may_move and path.exists():
            number += 1
            path = path.with_name(f"{Path(wanted).name}_{number}")
        if (path / RUN_FILE).exists():
            raise UserError(f"hydra.run.dir={wanted}: holds a run already. Choose another directory.")
        self.path = path
        self._made = [folder for folder in (path, *path.parents) if not folder.exists()]
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._before = set(path.iterdir())
            probe = path / ".writable"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"hydra.run.dir={wanted}: can't be written ({error.strerror}). Choose another directory."
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
