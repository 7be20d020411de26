"""Cores of their own for runs that go on at once on one machine."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from laptime.errors import UserError
from laptime.runner.context import SweepContext

_POLL_S = 0.2


@dataclass(frozen=True)
class CoreSlots:
    """Equal parts of a machine's cores, each for one run at a time.

    Attributes:
        num: how many runs go on at once.
        cores: of this machine, by the system's numbers; empty: the system can't confine a process to some of them.
    """

    num: int
    cores: tuple[int, ...]

    @contextmanager
    def take(self, folder: Path) -> Iterator[bool]:
        """Wait for a part that nobody has, and confine this process, and all that it will start, to its cores.

        Args:
            folder: that all processes share, for a file per part.

        Yields:
            Whether this process has cores of its own.
        """
        lock = self._first_free(folder)
        try:
            if self.cores:
                os.sched_setaffinity(0, self._cores_of(_number(lock)))
            yield bool(self.cores)
        finally:
            lock.release()

    def _cores_of(self, part: int) -> set[int]:
        size = len(self.cores) // self.num
        return set(self.cores[part * size : (part + 1) * size])

    def _first_free(self, folder: Path) -> FileLock:
        # The one that it has had before comes first: what it has started meanwhile is confined to those cores.
        numbers = sorted(range(self.num), key=lambda part: not self.cores or self._cores_of(part) != _affinity())
        while True:
            for part in numbers:
                lock = FileLock(folder / f"cores-{part}.lock", timeout=0)
                try:
                    lock.acquire()
                    return lock
                except Timeout:
                    continue
            time.sleep(_POLL_S)


@dataclass(frozen=True)
class SweepCores:
    """How the runs of a sweep share the cores of a machine.

    Attributes:
        largest_world_size: of its runs: p ranks have p times the cores in each of them.
        slots: for runs at once; None: one at a time.
        threads: that `strategy.threads_per_rank=auto` has stood for so far, in a resumed sweep; None: in no run yet.
    """

    largest_world_size: int
    slots: CoreSlots | None = None
    threads: int | None = None

    @property
    def runs_at_once(self) -> int:
        return 1 if self.slots is None else self.slots.num

    def threads_per_rank(self) -> int:
        """What `strategy.threads_per_rank=auto` stands for on this machine, in each run."""
        return self._threads(self.runs_at_once)

    def context(self) -> SweepContext:
        """What each run will know of its sweep."""
        return SweepContext(self.threads_per_rank(), runs_at_once=self.runs_at_once)

    @contextmanager
    def take(self, folder: Path) -> Iterator[SweepContext]:
        """Wait for cores for a run of this process; yields what that needs to know.

        Args:
            folder: that all processes of the sweep share.
        """
        if self.slots is None:
            yield self.context()
            return
        folder.mkdir(exist_ok=True)
        with self.slots.take(folder) as has_own_cores:
            threads = self._threads(1 if has_own_cores else self.slots.num)
            yield SweepContext(threads, runs_at_once=self.slots.num)

    def _threads(self, num_runs: int) -> int:
        """Where so many runs have the cores that this process may use."""
        from laptime.machine.device import usable_cores  # loads torch

        return self.threads or max(1, usable_cores() // (self.largest_world_size * num_runs))


def core_slots_of(composed: DictConfig, num_jobs: int, world_size: int) -> CoreSlots | None:
    """How many runs the launcher of a sweep starts at once on this machine, and with which cores; None: one at a time,
    or each on a machine of its own.

    Args:
        composed: one of the sweep's jobs, with Hydra's own part.
        num_jobs: of the sweep.
        world_size: the largest of its jobs.

    Raises:
        UserError: more at once were asked for than there are cores.
    """
    from laptime.machine.device import usable_cores  # loads torch

    launcher = OmegaConf.select(composed, "hydra.launcher")
    name = str(launcher.get("_target_")).rpartition(".")[2]
    if name not in ("JoblibLauncher", "LocalLauncher"):
        return None
    num_cores = usable_cores()
    asked = launcher.n_jobs if name == "JoblibLauncher" else -1
    if asked > num_cores or asked == 0 or asked < -num_cores:
        raise UserError(
            f"hydra.launcher.n_jobs={asked}: must be at least 1, and each run needs cores of its own: there are "
            f"{num_cores}. Leave it out for as many runs at once as there are cores for."
        )
    # As joblib counts: -1 is all, -2 all but one.
    most = asked if asked > 0 else max(1, (num_cores + 1 + asked) // world_size)
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    # A container's quota grants no particular cores: others, with quotas of their own, would take the first as well.
    return CoreSlots(min(most, num_jobs), tuple(affinity) if len(affinity) == num_cores else ())


def _number(lock: FileLock) -> int:
    return int(Path(lock.lock_file).stem.partition("-")[2])


def _affinity() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
