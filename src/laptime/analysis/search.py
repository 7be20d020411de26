"""Searches: the best trials, and of several objectives those that no other beats in all of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from laptime.analysis.group import Group
from laptime.record.files import is_maximized
from laptime.record.hydra_files import HydraFileError, read_sweep_file


@dataclass(frozen=True)
class Search:
    """Groups of a search.

    Attributes:
        metrics: of `result` or `timing` of a record (`optimized_metric`).
        groups: in which all of them were measured.
        values: of each group, the median of its repeats for each metric.
        front: the places of the groups that no other beats: none is at least as good in all and better in one. From the
            best in the first metric on. With one metric the best alone.
    """

    metrics: tuple[str, ...]
    groups: tuple[Group, ...]
    values: tuple[tuple[float, ...], ...]
    front: tuple[int, ...]

    @property
    def ranked(self) -> list[int]:
        """The places of all groups, the best in the first metric first."""
        costs = _costs(self.values, self.metrics)
        return sorted(range(len(costs)), key=lambda place: costs[place][0])


def searches(groups: Sequence[Group]) -> list[Search]:
    """What was searched for: runs of a sweeper that chooses, and whatever has several objectives."""
    is_search = cache(_is_search)
    by_metrics: dict[tuple[str, ...], list[Group]] = {}
    for group in groups:
        metrics = group.first.laptime_config.get("optimized_metric")
        several = tuple(metrics) if isinstance(metrics, list) else (metrics,)
        if len(several) > 1 or (metrics and any(is_search(run.path.absolute().parent) for run in group.runs)):
            by_metrics.setdefault(several, []).append(group)
    found = []
    for metrics, members in by_metrics.items():
        measured = [(group, point) for group in members if (point := _values(group, metrics)) is not None]
        if len(measured) > 1:
            points = tuple(point for _, point in measured)
            found.append(Search(metrics, tuple(group for group, _ in measured), points, pareto_front(points, metrics)))
    return found


def _is_search(sweep_dir: Path) -> bool:
    try:
        return read_sweep_file(sweep_dir).is_search
    except HydraFileError:
        return False


def _values(group: Group, metrics: Sequence[str]) -> tuple[float, ...] | None:
    sections = ["result" if hasattr(group.first.record.result, metric) else "timing" for metric in metrics]
    values = [group.median(section, metric) for section, metric in zip(sections, metrics, strict=True)]
    known = [value for value in values if value is not None]
    return tuple(known) if len(known) == len(metrics) else None


def pareto_front(values: Sequence[Sequence[float]], metrics: Sequence[str]) -> tuple[int, ...]:
    """The places of the points that no other beats, best in the first metric first.

    Args:
        values: of each point, one per metric.
        metrics: their names, which say whether more or less is better.
    """
    costs = _costs(values, metrics)
    front = [place for place, cost in enumerate(costs) if not any(_beats(other, cost) for other in costs)]
    return tuple(sorted(front, key=lambda place: costs[place]))


def _costs(values: Sequence[Sequence[float]], metrics: Sequence[str]) -> list[tuple[float, ...]]:
    """The points so that less is better in each metric."""
    return [
        tuple(-value if is_maximized(metric) else value for value, metric in zip(point, metrics, strict=True))
        for point in values
    ]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(a <= b for a, b in zip(one, other, strict=True)) and tuple(one) != tuple(other)
