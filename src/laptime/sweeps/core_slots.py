"""Separate cores for runs that train concurrently on one machine."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from laptime.errors import UserError
from laptime.machine.hardware import allowed_cores
from laptime.runner.context import SweepContext

_POLL_S = 0.2


@dataclass(frozen=True)
class CoreSlots:
    """Slots with the same number of cores, each for one run at a time.

    Attributes:
        num: number of slots, which is the number of concurrent runs.
        cores: numbers of the cores to divide; empty: processes can't be pinned to cores on this system.
    """

    num: int
    cores: tuple[int, ...]

    @contextmanager
    def take(self, folder: Path) -> Iterator[bool]:
        """Wait for a free slot, and pin this process and its future children to the cores of the slot.

        Args:
            folder: the folder for one lock file per slot, which all processes share.

        Yields:
            Whether this process was pinned.
        """
        lock = self._acquire_first_free(folder)
        try:
            if self.cores:
                os.sched_setaffinity(0, self._cores_of(_number(lock)))
            yield bool(self.cores)
        finally:
            lock.release()

    def _cores_of(self, slot: int) -> set[int]:
        size = len(self.cores) // self.num
        return set(self.cores[slot * size : (slot + 1) * size])

    def _acquire_first_free(self, folder: Path) -> FileLock:
        # Prefer the slot that this process had before, because its child processes are pinned to those cores.
        numbers = sorted(range(self.num), key=lambda slot: not self.cores or self._cores_of(slot) != allowed_cores())
        while True:
            for slot in numbers:
                lock = FileLock(folder / f"cores-{slot}.lock", timeout=0)
                try:
                    lock.acquire()
                    return lock
                except Timeout:
                    continue
            time.sleep(_POLL_S)


@dataclass(frozen=True)
class SweepCores:
    """How the runs of a sweep divide the cores of a machine.

    Attributes:
        largest_world_size: the largest world size of all runs. It determines the cores per rank, so that p ranks have p
            times the cores.
        slots: the core slots of concurrent runs; None: one run at a time.
        threads: value of `strategy.threads_per_rank=auto` in the earlier runs of a resumed sweep; None: no earlier run.
    """

    largest_world_size: int
    slots: CoreSlots | None = None
    threads: int | None = None

    @property
    def runs_at_once(self) -> int:
        return 1 if self.slots is None else self.slots.num

    def threads_per_rank(self) -> int:
        """The value of `strategy.threads_per_rank=auto` in each run on this machine."""
        return self._threads(self.runs_at_once)

    def context(self) -> SweepContext:
        """The context that each run gets."""
        return SweepContext(self.threads_per_rank(), runs_at_once=self.runs_at_once)

    @contextmanager
    def take(self, folder: Path) -> Iterator[SweepContext]:
        """Wait for free cores, and yield the context of a run in this process.

        Args:
            folder: a folder that all processes of the sweep share.
        """
        if self.slots is None:
            yield self.context()
            return
        folder.mkdir(exist_ok=True)
        with self.slots.take(folder) as is_pinned:
            threads = self._threads(1 if is_pinned else self.slots.num)
            yield SweepContext(threads, runs_at_once=self.slots.num)

    def _threads(self, num_runs: int) -> int:
        """Return the threads per rank if `num_runs` concurrent runs divide the cores that this process may use."""
        from laptime.machine.device import usable_cores  # loads torch

        return self.threads or max(1, usable_cores() // (self.largest_world_size * num_runs))


def core_slots_of(composed: DictConfig, num_jobs: int, world_size: int) -> CoreSlots | None:
    """Return the core slots for a launcher that starts several runs concurrently on this machine.

    Args:
        composed: the configuration of one of the sweep's jobs, including Hydra's part.
        num_jobs: number of jobs of the sweep.
        world_size: the largest world size of all jobs.

    Returns:
        The slots; None: the launcher starts one run at a time, or each on another machine.

    Raises:
        UserError: more concurrent runs are requested than there are cores.
    """
    from laptime.machine.device import usable_cores  # loads torch

    launcher = OmegaConf.select(composed, "hydra.launcher")
    name = str(launcher.get("_target_")).rpartition(".")[2]
    if name not in ("JoblibLauncher", "LocalLauncher"):
        return None
    num_cores = usable_cores()
    n_jobs = launcher.n_jobs if name == "JoblibLauncher" else -1
    if n_jobs > num_cores or n_jobs == 0 or n_jobs < -num_cores:
        raise UserError(
            f"hydra.launcher.n_jobs={n_jobs}: must be at least 1 and at most {num_cores}, the number of usable cores. "
            "Leave it out to use all cores."
        )
    # joblib's convention: -1 means all cores, -2 all but one.
    max_runs = n_jobs if n_jobs > 0 else max(1, (num_cores + 1 + n_jobs) // world_size)
    affinity = sorted(allowed_cores())
    # A container's CPU quota is not tied to particular cores. Pinning would put all containers on the first ones.
    return CoreSlots(min(max_runs, num_jobs), tuple(affinity) if len(affinity) == num_cores else ())


def _number(lock: FileLock) -> int:
    return int(Path(lock.lock_file).stem.partition("-")[2])
