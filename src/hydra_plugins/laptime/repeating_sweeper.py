"""Hydra's sweeper with repeats outermost, and as many of them as an interval asks for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from laptime.record import SWEEP_FILE
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
        self.chosen: dict[int, list[str]] | None = getattr(task_function, "jobs", None)

    def sweep(self, arguments: list[str]) -> Any:
        results = super().sweep(arguments) if self.chosen is None else self._run(self.chosen)
        measure = self.config.measure if self.config is not None else None
        if measure is None or measure.target_interval is None:
            return results
        assert self.config is not None
        started = sum(len(batch) for batch in self.overrides or ())
        number = max([started, *(known + 1 for known in numbered_runs(Path(self.config.hydra.sweep.dir)))])
        while jobs := self._missing_repeats(measure.target_interval, measure.max_repeats):
            assert self.launcher is not None
            results.append(self.launcher.launch(jobs, initial_job_idx=number))
            number += len(jobs)
        return results

    def _run(self, jobs: dict[int, list[str]]) -> list[Sequence[JobReturn]]:
        assert self.config is not None and self.launcher is not None
        OmegaConf.save(self.config, Path(self.config.hydra.sweep.dir) / SWEEP_FILE)
        return [self.launcher.launch([overrides], initial_job_idx=number) for number, overrides in jobs.items()]

    def _missing_repeats(self, target: float, most: int) -> list[Sequence[str]]:
        """A further job for every group whose interval is still too wide."""
        from laptime.analysis.repeats import missing_repeats  # SciPy takes its time to load

        assert self.config is not None
        return missing_repeats(Path(self.config.hydra.sweep.dir), target, most)
