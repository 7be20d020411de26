"""A performance gate for CI: compares throughput with a stored summary.json."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from laptime.analysis.analyze import Analysis
from laptime.analysis.conditions import CONDITIONS, MUST_MATCH, without_torchruns
from laptime.analysis.group import Group
from laptime.analysis.mismatch import SETTINGS, Mismatch, mismatch
from laptime.analysis.statistics import Interval, ratio, ratio_interval
from laptime.errors import UserError


class Verdict(Enum):
    """The result of the gate for one group."""

    OK = "ok"
    FALLEN = "fallen"
    MISSING = "missing"


@dataclass(frozen=True)
class BaselineGroup:
    """A group of the stored summary.json.

    Attributes:
        label, group_hash: the values in the file.
        samples_per_s: throughput of each repeat.
        conditions: fields of Conditions by name. A summary of an older version has fewer, or none.
    """

    label: str
    group_hash: str
    samples_per_s: tuple[float, ...]
    conditions: Mapping[str, object]


@dataclass(frozen=True)
class Check:
    """A stored group compared with the current group of the same configuration.

    Attributes:
        group: the label of the group.
        change: current throughput divided by the stored one; None: not measured now, or on another machine.
        interval: the interval of `change`; None with one repeat on either side.
        fallen: whether throughput fell by more than the tolerance and the interval is below 1.
        mismatches: differences between the groups, or the reason why they are not compared. If there are none and
            `change` is None, the group has no completed run now.
        names_machine: whether the stored summary names its machine.
    """

    group: str
    change: float | None
    interval: Interval | None
    fallen: bool
    mismatches: tuple[Mismatch, ...] = ()
    names_machine: bool = True

    @property
    def verdict(self) -> Verdict:
        if self.change is None:
            return Verdict.MISSING
        return Verdict.FALLEN if self.fallen else Verdict.OK


def check(analysis: Analysis, summary: Path, tolerance: float) -> list[Check]:
    """Compare every group of a stored summary.json with the current group of the same configuration.

    Raises:
        UserError: the file is not a summary.json, or has no group in common with the analysis.
    """
    baselines = _read(summary)
    if not {_key(group) for group in analysis.groups} & {baseline.group_hash for baseline in baselines}:
        raise UserError(
            f"--gate {summary}: has no group in common with these runs. Use the summary.json of runs of the same "
            "configuration."
        )
    return [result for baseline in baselines for result in _checks(analysis.groups, baseline, tolerance)]


def _checks(groups: Sequence[Group], baseline: BaselineGroup, tolerance: float) -> list[Check]:
    """Return the checks of all current groups with the baseline's configuration, even with other code.

    If none is comparable, one check says why.
    """
    same = [group for group in groups if _key(group) == baseline.group_hash]
    if not same:
        return [Check(baseline.label, None, None, False)]
    comparable = [group for group in same if not _differing(group, baseline, MUST_MATCH)]
    if not comparable:
        return [Check(same[0].label, None, None, False, _differing(same[0], baseline, MUST_MATCH))]
    return [_check(group, baseline, tolerance) for group in comparable]


def _check(group: Group, baseline: BaselineGroup, tolerance: float) -> Check:
    base_times, times = [1 / value for value in baseline.samples_per_s], group.seconds_per_sample
    change, interval = ratio(base_times, times), ratio_interval(base_times, times)
    fallen = change < 1 - tolerance and (interval is None or interval.high < 1)
    mismatches = _differing(group, baseline, CONDITIONS)
    return Check(group.label, change, interval, fallen, mismatches, names_machine="machine" in baseline.conditions)


def _differing(group: Group, baseline: BaselineGroup, names: Sequence[str]) -> tuple[Mismatch, ...]:
    values = {name: getattr(group.conditions, name) for name in names if name in baseline.conditions}
    base_values = {name: baseline.conditions[name] for name in values}
    if isinstance(text := base_values.get(SETTINGS), str):
        base_values[SETTINGS] = without_torchruns(text)
    return tuple(
        mismatch(name, str(value), str(base_values[name]))
        for name, value in values.items()
        if value != base_values[name]
    )


def _key(group: Group) -> str:
    return str(group.first.group_hash)


def _is_speed(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _read(path: Path) -> list[BaselineGroup]:
    try:
        groups = []
        for group in json.loads(path.read_bytes())["groups"]:
            speeds, conditions = group["samples_per_s"], group.get("conditions") or {}
            if not speeds or not all(map(_is_speed, speeds)) or not isinstance(conditions, dict):
                raise ValueError
            label, group_hash = str(group.get("label")), str(group["group_hash"])
            groups.append(BaselineGroup(label, group_hash, tuple(map(float, speeds)), conditions))
        return groups
    except OSError as error:
        raise UserError(f"--gate {path}: can't be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--gate {path}: must be a summary.json that Laptime wrote.") from error
