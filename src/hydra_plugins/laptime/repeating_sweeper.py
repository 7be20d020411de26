"""Hydra's sweeper with repeats outermost, and as many of them as an interval asks for."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from laptime.errors import in_words, launching
from laptime.record import SWEEP_FILE, read_plan, write_atomically
from laptime.run_dir import numbered_runs


@dataclass
class RepeatingSweeperConf(BasicSweeperConf):
    _target_: str = "hydra_plugins.laptime.repeating_sweeper.RepeatingSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="laptime", node=RepeatingSweeperConf, provider="laptime")


class RepeatingSweeper(BasicSweeper):
    """Runs every combination, all of one seed before the next: what drifts slowly then meets every group alike. While
    `measure.target_interval` is not reached, it repeats those groups with further seeds.

    A sweep that goes on with an earlier one (`sweep.resume`) runs the jobs that its task function names, by number:
    they follow from what that one has completed, not from overrides alone.
    """

    @staticmethod
    def split_arguments(overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """The jobs in order, seeds outermost wherever they were typed."""
        first = sorted(overrides, key=lambda override: override.get_key_element() != "seed")
        return BasicSweeper.split_arguments(first, max_batch_size)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.task_function = task_function

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        assert self.config is not None
        sweep_dir = Path(self.config.hydra.sweep.dir)
        jobs: dict[int, list[str]] | None = getattr(self.task_function, "numbered_jobs", None)
        if jobs is None:
            jobs = self._jobs(arguments)
        try:
            sweep_dir.mkdir(parents=True, exist_ok=True)
            write_atomically(sweep_dir / SWEEP_FILE, OmegaConf.to_yaml(self.config).encode())
        except OSError as error:  # Hydra would show a traceback
            print(f"error: {in_words(error)}", file=sys.stderr)
            sys.exit(1)
        results = self._run(jobs)
        measure = self.config.measure
        if measure.target_interval is not None:
            number = max([*jobs, *numbered_runs(sweep_dir), *read_plan(sweep_dir)], default=-1) + 1
            while missing := self._missing_repeats(measure.target_interval, measure.max_repeats):
                further = dict(enumerate(map(list, missing), start=number))
                self.task_function.plan(further)  # type: ignore[attr-defined]
                results += self._run(further)
                number += len(further)
        return results

    def _jobs(self, arguments: list[str]) -> dict[int, list[str]]:
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        batches = self.split_arguments(overrides, self.max_batch_size)
        return dict(enumerate(job for batch in batches for job in batch))

    def _run(self, jobs: dict[int, list[str]]) -> list[Sequence[JobReturn]]:
        """Start the jobs, one by one where they run here: what keeps one from starting, a full disk say, is the others'
        matter only if `sweep.on_failure` says so."""
        assert self.config is not None and self.launcher is not None
        if type(self.launcher) is not BasicLauncher:
            with launching():
                return [
                    self.launcher.launch([jobs[number] for number in stretch], initial_job_idx=stretch[0])
                    for stretch in consecutive(jobs)
                ]
        results = []
        for number, overrides in jobs.items():
            try:
                results.append(self.launcher.launch([overrides], initial_job_idx=number))
            except OSError as error:
                self.task_function.could_not_start(  # type: ignore[attr-defined]
                    number, overrides, error, self.config.sweep.on_failure
                )
        return results

    def _missing_repeats(self, target: float, most: int) -> list[Sequence[str]]:
        """A further job for every group whose interval is still too wide."""
        from laptime.analysis.repeats import missing_repeats  # SciPy takes its time to load

        assert self.config is not None
        return missing_repeats(Path(self.config.hydra.sweep.dir), target, most)


def consecutive(numbers: Iterable[int]) -> list[list[int]]:
    """Stretches of numbers of which each is the next of the one before: a launcher counts its jobs from the first."""
    stretches: list[list[int]] = []
    for number in numbers:
        if not stretches or number != stretches[-1][-1] + 1:
            stretches.append([])
        stretches[-1].append(number)
    return stretches
