"""Hydra's sweeper with repeats outermost, and as many of them as an interval asks for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
    """Runs what was planned (laptime.sweeps.plan), all of one seed before the next: what drifts slowly then meets every
    group alike. While `measure.target_interval` is not reached, it repeats those groups with further seeds.

    Its task function is a laptime.sweeps.sweep.Sweep.
    """

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.task_function = task_function

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Run what the task function has planned, by number, whatever the arguments stand for."""
        assert self.config is not None
        results = self._run(self.task_function.todo)  # type: ignore[attr-defined]
        measure = self.config.measure
        if measure.target_interval is not None:
            while missing := self._missing_repeats(measure.target_interval, measure.max_repeats):
                results += self._run(self.task_function.add_runs(missing))  # type: ignore[attr-defined]
        return results

    def _run(self, jobs: Mapping[int, list[str]]) -> list[Sequence[JobReturn]]:
        """Start the jobs, one by one where they run here: what keeps one from starting, a full disk say, is the others'
        matter only if `sweep.on_failure` says so."""
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

    def _missing_repeats(self, target: float, most: int) -> list[list[str]]:
        """A further job for every group whose interval is still too wide."""
        from laptime.analysis.repeats import missing_repeats  # SciPy takes its time to load

        assert self.config is not None
        known = self.task_function.overrides_by_run  # type: ignore[attr-defined]
        return missing_repeats(Path(self.config.hydra.sweep.dir), known, target, most)


def consecutive(numbers: Iterable[int]) -> list[list[int]]:
    """Stretches of numbers of which each is the next of the one before: a launcher counts its jobs from the first."""
    stretches: list[list[int]] = []
    for number in numbers:
        if not stretches or number != stretches[-1][-1] + 1:
            stretches.append([])
        stretches[-1].append(number)
    return stretches
