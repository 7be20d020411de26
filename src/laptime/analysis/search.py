"""Finds the best trials of hyperparameter searches, and the Pareto front of several objectives."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from laptime.analysis.group import Group
from laptime.record.files import is_maximized, is_score
from laptime.record.hydra_files import HydraFileError, read_sweep_file
from laptime.record.score import ACCURACY, Score


@dataclass(frozen=True)
class Search:
    """A hyperparameter search.

    Attributes:
        metrics: keys of `result` or `timing` in run.json (`optimized_metric`).
        score: the score of all groups; accuracy if no metric is a value of the score.
        groups: the groups in which all metrics were measured.
        values: medians over the repeats, per group and metric.
        front: indices of the groups on the Pareto front, the best in the first metric first. No other group is at least
            as good in all metrics and better in one. With one metric, it is only the best group.
    """

    metrics: tuple[str, ...]
    score: Score
    groups: tuple[Group, ...]
    values: tuple[tuple[float, ...], ...]
    front: tuple[int, ...]

    @property
    def titles(self) -> list[str]:
        """The metrics for readers: `val_score (bits per character)`."""
        return [f"{metric} ({self.score.name})" if is_score(metric) else metric for metric in self.metrics]

    @property
    def ranked(self) -> list[int]:
        """The indices of all groups, the best in the first metric first."""
        costs = _costs(self.values, self.metrics, self.score)
        return sorted(range(len(costs)), key=lambda index: costs[index][0])


def searches(groups: Sequence[Group]) -> list[Search]:
    """Return the searches among the groups: runs of a sweeper that optimizes, and runs with several objectives.

    Groups with different scores are not in one search by score.
    """
    is_search = cache(_is_search)
    by_metrics: dict[tuple[tuple[str, ...], Score], list[Group]] = {}
    for group in groups:
        metrics = group.first.laptime_config.get("optimized_metric")
        several = tuple(metrics) if isinstance(metrics, list) else (metrics,)
        if len(several) > 1 or (metrics and any(is_search(run.path.absolute().parent) for run in group.runs)):
            score = group.score if any(map(is_score, several)) else ACCURACY
            if score is not None:
                by_metrics.setdefault((several, score), []).append(group)
    result = []
    for (metrics, score), members in by_metrics.items():
        measured = [(group, point) for group in members if (point := _values(group, metrics)) is not None]
        if len(measured) > 1:
            points = tuple(point for _, point in measured)
            groups_with_values = tuple(group for group, _ in measured)
            result.append(Search(metrics, score, groups_with_values, points, pareto_front(points, metrics, score)))
    return result


def _is_search(sweep_dir: Path) -> bool:
    try:
        return read_sweep_file(sweep_dir).is_search
    except HydraFileError:
        return False


def _values(group: Group, metrics: Sequence[str]) -> tuple[float, ...] | None:
    sections = ["result" if hasattr(group.first.record.result, metric) else "timing" for metric in metrics]
    values = [group.median(section, metric) for section, metric in zip(sections, metrics, strict=True)]
    measured = [value for value in values if value is not None]
    return tuple(measured) if len(measured) == len(metrics) else None


def pareto_front(values: Sequence[Sequence[float]], metrics: Sequence[str], score: Score) -> tuple[int, ...]:
    """Return the indices of the points on the Pareto front, the best in the first metric first.

    Args:
        values: one value per point and metric.
        metrics: names of the metrics, which determine whether larger or smaller is better.
        score: the score of all points.
    """
    costs = _costs(values, metrics, score)
    front = [index for index, cost in enumerate(costs) if not any(_dominates(other, cost) for other in costs)]
    return tuple(sorted(front, key=lambda index: costs[index]))


def _costs(values: Sequence[Sequence[float]], metrics: Sequence[str], score: Score) -> list[tuple[float, ...]]:
    """Return the values with maximized metrics negated, so that smaller is better in each."""
    return [
        tuple(-value if is_maximized(metric, score) else value for value, metric in zip(point, metrics, strict=True))
        for point in values
    ]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)
