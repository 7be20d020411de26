"""A group of repeats and its statistics."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from laptime.analysis.conditions import Conditions
from laptime.analysis.load import Run
from laptime.analysis.statistics import (
    MIN_REPEATS,
    Summary,
    median_and_deviation,
    relative_width,
    summarize,
    trend,
)
from laptime.record.epochs import time_to_score
from laptime.record.files import is_score
from laptime.record.score import ACCURACY, Score


@dataclass(frozen=True)
class Group:
    """Repeats of one configuration under one set of conditions.

    Attributes:
        runs: the repeats, in the order of their seeds.
        config: the settings that can change results or timing, by full key, without the seed.
        label: short text that distinguishes the group from the others.
        epoch_time_s, samples_per_s: statistics of the counted epochs.
    """

    runs: tuple[Run, ...]
    config: Mapping[str, object]
    conditions: Conditions
    label: str = ""

    @cached_property
    def epoch_time_s(self) -> Summary:
        return summarize([run.counted["epoch_time_s"].to_list() for run in self.runs])

    @cached_property
    def samples_per_s(self) -> Summary:
        rates = summarize([run.counted["samples_per_s"].to_list() for run in self.runs])
        # 1 / (median time), so that both figures agree. For an even number of repeats the median of rates differs.
        _, std_repeats = median_and_deviation(self.throughputs)
        return replace(rates, median=1 / float(np.median(self.seconds_per_sample)), std_repeats=std_repeats)

    @property
    def first(self) -> Run:
        """The first run. Use it for values that all repeats have in common."""
        return self.runs[0]

    @property
    def world_size(self) -> int:
        return self.first.strategy.world_size

    @property
    def num_seeds(self) -> int:
        """The number of distinct seeds, because runs with the same seed learn the same. Unknown seeds are distinct."""
        return len({_seed(run) for run in self.runs})

    @property
    def num_unseeded(self) -> int:
        """The number of repeats whose seed is unknown."""
        return sum(run.seed is None for run in self.runs)

    @property
    def hosts(self) -> set[str]:
        """The hashes of the hostnames of the runs."""
        return {run.environment.hostname_hash for run in self.runs}

    @property
    def is_plain(self) -> bool:
        """Whether the runs are single processes without DDP."""
        return self.world_size == 1 and self.first.strategy.backend is None

    @cached_property
    def seconds_per_sample(self) -> list[float]:
        """The median epoch time divided by the samples per epoch, for each repeat. Speedups are ratios of these."""
        return [float(run.counted["epoch_time_s"].median() / run.counted["num_samples"].median()) for run in self.runs]

    @property
    def throughputs(self) -> list[float]:
        """The samples_per_s in run.json of each repeat."""
        return [1 / seconds for seconds in self.seconds_per_sample]

    @cached_property
    def tokens_per_s(self) -> float | None:
        """The median over the repeats; None: the data are not text."""
        return self.median("timing", "tokens_per_s")

    @cached_property
    def interval_width(self) -> float | None:
        """The width of the 95% interval of the epoch time, as a fraction of the epoch time; None with one repeat."""
        return relative_width(self.seconds_per_sample)

    def is_precise(self, target: float) -> bool:
        """Whether `interval_width` is at most the target, with enough repeats to trust it."""
        width = self.interval_width
        return width is not None and width <= target and len(self.runs) >= MIN_REPEATS

    def values(self, section: str, key: str) -> list[float]:
        """Return a figure of run.json for each repeat that has it.

        For figures of `result` there is one value per seed, because repeats of one seed learn the same. There are no
        values of the score if the repeats have different scores.
        """
        if is_score(key) and self.score is None:
            return []
        runs = {_seed(run): run for run in reversed(self.runs)}.values() if section == "result" else self.runs
        values = [getattr(getattr(run.record, section), key) for run in runs]
        return [float(value) for value in values if isinstance(value, int | float)]

    def median(self, section: str, key: str) -> float | None:
        """Return the median of a figure of run.json over the repeats; None: it was not measured."""
        values = self.values(section, key)
        return float(np.median(values)) if values else None

    @cached_property
    def scores(self) -> tuple[Score, ...]:
        """The different scores of the repeats. Repeats without a score are left out; empty: no repeat has one."""
        return tuple(dict.fromkeys(score for run in self.runs if (score := run.record.result.score) is not None))

    @property
    def score(self) -> Score | None:
        """The score of the repeats; accuracy if none has a score; None: they have different scores."""
        return common_score([self])

    def times_to(self, target: float) -> list[float | None]:
        """Return the seconds of training until each repeat reached a validation score; None: never, or unknown."""
        return [
            time_to_score(
                zip(run.epochs["elapsed_s"].tolist(), run.epochs["val_score"].tolist(), strict=True),
                run.record.score,
                target,
                int(run.epochs["epoch"].iloc[0]),
            )
            for run in self.runs
        ]

    @property
    def absent_devices(self) -> list[str]:
        """The requested devices that were absent, so that runs of this group trained on the CPU instead."""
        if self.first.device.used != "cpu":
            return []
        return sorted({run.device.requested for run in self.runs} - {"auto", "cpu"})

    @property
    def quality(self) -> str:
        """The worst grade of the repeats: A, B or C; empty: no repeat has a grade."""
        return max((grade for run in self.runs if (grade := run.record.quality.grade) is not None), default="")

    @cached_property
    def trend(self) -> float | None:
        """The rise (or fall) of epoch times over the counted epochs, as a fraction; None: no significant trend."""
        return trend([run.counted["epoch_time_s"].to_list() for run in self.runs])


def lap_word(groups: Iterable[Group]) -> str:
    """Return `epoch` if Laptime ran all trainings and timed their epochs; otherwise `lap`."""
    return "epoch" if all(group.first.record.lap_word == "epoch" for group in groups) else "lap"


def with_tokens(groups: Sequence[Group]) -> bool:
    """Whether all groups have tokens/s."""
    return all(group.tokens_per_s is not None for group in groups)


def _seed(run: Run) -> object:
    return run.path if run.seed is None else run.seed


@dataclass(frozen=True)
class Reached:
    """The time that a group took to reach a validation score.

    Attributes:
        score: the score.
        target: the value to reach.
        num_reached: number of repeats that reached it.
        time_s: median time over these repeats; None: no repeat reached it.
    """

    score: Score
    target: float
    num_reached: int
    time_s: float | None


@dataclass(frozen=True)
class Target:
    """A validation score to reach. It applies to the groups that have this score.

    Attributes:
        score: the score.
        value: the value to reach.
    """

    score: Score
    value: float


def reached(group: Group, target: Target | None) -> Reached | None:
    """Return the time to a target.

    Args:
        target: the target; None: each run's measure.target_score or measure.target_accuracy.

    Returns:
        The time; None: there is no target for the group's score.
    """
    score, value = group.score, group.first.record.target
    if target is not None:
        value = target.value if score == target.score else None
    if score is None or value is None:
        return None
    times = [time for time in group.times_to(value) if time is not None]
    return Reached(score, value, len(times), float(np.median(times)) if times else None)


def all_scores(groups: Iterable[Group]) -> list[Score]:
    """Return the different scores of all runs; accuracy if no run has one."""
    return list(dict.fromkeys(score for group in groups for score in group.scores)) or [ACCURACY]


def common_score(groups: Iterable[Group]) -> Score | None:
    """Return the only score of all runs; None: they have different scores."""
    scores = all_scores(groups)
    return scores[0] if len(scores) == 1 else None
