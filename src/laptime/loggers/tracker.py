"""What a logger of an experiment tracker is: beside values it is told which run they belong to, and how that ended."""

import hashlib
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

from pytorch_lightning.loggers import Logger


@dataclass(frozen=True)
class Run:
    """What a tracker calls a run.

    Attributes:
        id: the same for all attempts at a run, and of no other run: 16 hexadecimal digits.
        name: what was swept, `ws=2 seed=1`; outside of a sweep the last two parts of its directory.
        sweep: its sweep, by the last two parts of that directory; None: of none.
        run_dir: absolute.
        commit: of the code; None: not known.
    """

    id: str
    name: str
    sweep: str | None
    run_dir: Path
    commit: str | None

    @classmethod
    def of(cls, run_dir: Path, started_at: str, commit: str | None, label: str | None) -> "Run":
        """The run in a directory.

        Args:
            run_dir: absolute.
            started_at, commit: as its record has them.
            label: what tells it from the others of its sweep, empty where nothing does; None: it is in no sweep.
        """
        digest = hashlib.sha256(f"{run_dir} {started_at}".encode()).hexdigest()[:16]
        sweep = None if label is None else _last_two(run_dir.parent)
        return cls(digest, label or _last_two(run_dir), sweep, run_dir, commit)


class Tracker(Logger):
    """A logger that `begin`s before anything is trained, and `end`s however the run does."""

    run: Run | None = None
    # Whether a run stays open where the process died that had begun it.
    stays_open_after_crash = False

    @abstractmethod
    def begin(self, run: Run) -> None:
        """Open the run, or go on with it where an earlier attempt has opened it.

        Raises:
            UserError: the tracker can't be what the configuration says.
        """

    @abstractmethod
    def end(self, status: str) -> None:
        """Close the run.

        Args:
            status: completed, failed or interrupted.
        """

    def release(self) -> None:
        """Let go of what this process holds for the tracker, last of all and whether it could be written to or not."""

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
