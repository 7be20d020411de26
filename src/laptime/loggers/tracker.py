"""The base class of experiment trackers: loggers that also know their run and its final status."""

import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

from pytorch_lightning.loggers import Logger


@dataclass(frozen=True)
class Run:
    """A run as trackers identify it.

    Attributes:
        id: 16 hexadecimal digits, the same for all attempts at a run and unique to it.
        name: the swept values, e.g. `ws=2 seed=1`; outside of a sweep the last two parts of its directory.
        sweep: the last two parts of the sweep directory; None: it is not part of a sweep.
        run_dir: the absolute path of the run directory.
        commit: the git commit of the code; None: unknown.
    """

    id: str
    name: str
    sweep: str | None
    run_dir: Path
    commit: str | None

    @classmethod
    def of(cls, run_dir: Path, started_at: str, commit: str | None, label: str | None) -> "Run":
        """Return the run of a directory.

        Args:
            run_dir: the absolute path of the run directory.
            started_at, commit: the values in its record.
            label: the swept values, empty if there are none; None: the run is not part of a sweep.
        """
        digest = hashlib.sha256(f"{run_dir} {started_at}".encode()).hexdigest()[:16]
        sweep = None if label is None else _last_two(run_dir.parent)
        return cls(digest, label or _last_two(run_dir), sweep, run_dir, commit)


class Tracker(Logger):
    """A logger with `begin`, called before the training, and `end`, called however the run ends."""

    run: Run | None = None
    # Whether a run stays open if the process that began it dies.
    stays_open_after_crash = False

    @abstractmethod
    def begin(self, run: Run) -> None:
        """Open the run, or continue it if an earlier attempt has opened it.

        Raises:
            UserError: the tracker can't be used as configured.
        """

    @abstractmethod
    def end(self, status: str) -> None:
        """Close the run.

        Args:
            status: completed, failed or interrupted.
        """

    def release(self) -> None:
        """Free the tracker's resources in this process. Called last, even if writing failed."""

    @property
    def name(self) -> str | None:
        return self.run.name if self.run is not None else None

    @property
    def version(self) -> str | None:
        return self.run.id if self.run is not None else None

    @property
    def save_dir(self) -> str | None:
        return str(self.run.run_dir) if self.run is not None else None


def _last_two(path: Path) -> str:
    return "/".join(path.parts[-2:])
