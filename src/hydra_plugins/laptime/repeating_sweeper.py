"""Hydra's sweeper with repeats outermost. It adds repeats until `measure.target_interval` is reached."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Hydra 1.3 has these in private modules only (not reported).
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from laptime.errors import launcher_errors


@dataclass
class RepeatingSweeperConf(BasicSweeperConf):
    _target_: str = "hydra_plugins.laptime.repeating_sweeper.RepeatingSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="laptime", node=RepeatingSweeperConf, provider="laptime")


class RepeatingSweeper(BasicSweeper):
    """Runs the planned jobs (laptime.sweeps.plan), and repeats groups that have not reached `measure.target_interval`.

    All jobs of one seed come before those of the next, so that slow drift affects every group equally.

    Its task function is a laptime.sweeps.sweep.Sweep.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.task_function = task_function

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Run the jobs that the task function has planned, in the order of their numbers. Ignore the arguments."""
        assert self.config is not None
        results = self._run(self.task_function.todo)  # type: ignore[attr-defined]
        measure = self.config.measure
        if measure.target_interval is not None:
            while missing := self._missing_repeats(measure.target_interval, measure.max_repeats):
                results += self._run(self.task_function.add_runs(missing))  # type: ignore[attr-defined]
        return results

    def _run(self, jobs: Mapping[int, list[str]]) -> list[Sequence[JobReturn]]:
        """Start the jobs.

        In this process they start one by one. So the others continue if one can't start, e.g. because the disk is full
        (see `sweep.on_failure`).
        """
        assert self.config is not None and self.launcher is not None
        if type(self.launcher) is not BasicLauncher:
            with launcher_errors():
                return [
                    self.launcher.launch([jobs[number] for number in stretch], initial_job_idx=stretch[0])
                    for stretch in consecutive(jobs)
                ]
        results = []
        for number, overrides in jobs.items():
            try:
                results.append(self.launcher.launch([overrides], initial_job_idx=number))
            except OSError as error:
                self.task_function.record_failed_start(  # type: ignore[attr-defined]
                    number, overrides, error, self.config.sweep.on_failure
                )
        return results

    def _missing_repeats(self, target: float, max_repeats: int) -> list[list[str]]:
        """Return another job for every group whose interval is still too wide."""
        from laptime.analysis.repeats import missing_repeats  # SciPy is slow to import

        assert self.config is not None
        overrides_by_run = self.task_function.overrides_by_run  # type: ignore[attr-defined]
        return missing_repeats(Path(self.config.hydra.sweep.dir), overrides_by_run, target, max_repeats)


def consecutive(numbers: Iterable[int]) -> list[list[int]]:
    """Split numbers into ranges without gaps, because a launcher numbers its jobs consecutively from the first."""
    stretches: list[list[int]] = []
    for number in numbers:
        if not stretches or number != stretches[-1][-1] + 1:
            stretches.append([])
        stretches[-1].append(number)
    return stretches
