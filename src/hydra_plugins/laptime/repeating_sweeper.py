"""Hydra's sweeper with repeats outermost, and as many of them as an interval asks for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override


@dataclass
class RepeatingSweeperConf(BasicSweeperConf):
    _target_: str = "hydra_plugins.laptime.repeating_sweeper.RepeatingSweeper"


ConfigStore.instance().store(group="hydra/sweeper", name="laptime", node=RepeatingSweeperConf, provider="laptime")


class RepeatingSweeper(BasicSweeper):
    """Runs every combination, all of one seed before the next: what drifts slowly then meets every group alike. While
    `measure.target_interval` is not reached, it repeats those groups with further seeds."""

    @staticmethod
    def split_arguments(overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        """The jobs in order, seeds outermost wherever they were typed."""
        first = sorted(overrides, key=lambda override: override.get_key_element() != "seed")
        return BasicSweeper.split_arguments(first, max_batch_size)

    def sweep(self, arguments: list[str]) -> Any:
        results = super().sweep(arguments)
        measure = self.config.measure if self.config is not None else None
        if measure is None or measure.target_interval is None:
            return results
        assert self.overrides is not None
        number = sum(len(batch) for batch in self.overrides)
        while jobs := self._missing_repeats(measure.target_interval, measure.max_repeats):
            assert self.launcher is not None
            results.append(self.launcher.launch(jobs, initial_job_idx=number))
            number += len(jobs)
        return results

    def _missing_repeats(self, target: float, most: int) -> list[Sequence[str]]:
        """A further job for every group whose interval is still too wide."""
        from laptime.analysis.repeats import missing_repeats  # SciPy takes its time to load

        assert self.config is not None
        return missing_repeats(Path(self.config.hydra.sweep.dir), target, most)
