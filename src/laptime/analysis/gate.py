"""A gate for CI: has throughput fallen since a summary that was kept?"""

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
    """Of one group."""

    OK = "ok"
    FALLEN = "fallen"
    MISSING = "missing"


@dataclass(frozen=True)
class BaselineGroup:
    """A group of a summary.json that was kept.

    Attributes:
        label, group_hash, samples_per_s: as there; samples_per_s of each repeat.
        conditions: fields of Conditions by name; an older summary has fewer, or none.
    """

    label: str
    group_hash: str
    samples_per_s: tuple[float, ...]
    conditions: Mapping[str, object]


@dataclass(frozen=True)
class Check:
    """One kept group against the same configuration now.

    Attributes:
        group: its label.
        change: ratio of throughputs, now over then; None: it was not measured now, or on another machine.
        interval: of it; None with one repeat on either side.
        fallen: whether it fell by more than the tolerance, and the interval leaves no doubt that it fell.
        mismatches: in what the groups differ; of a group that is not compared, why. Empty: it has no completed run now.
        names_machine: whether the kept summary says which machine it is of.
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


def check(analysis: Analysis, kept: Path, tolerance: float) -> list[Check]:
    """Compare every group of a summary.json with the one of the same configuration now.

    Raises:
        UserError: the file is no summary, or has none of these groups.
    """
    then = _read(kept)
    if not {_key(group) for group in analysis.groups} & {group.group_hash for group in then}:
        raise UserError(
            f"--gate {kept}: has none of these groups. Keep the summary.json of runs of the same configuration."
        )
    return [found for group in then for found in _checks(analysis.groups, group, tolerance)]


def _checks(groups: Sequence[Group], kept: BaselineGroup, tolerance: float) -> list[Check]:
    """A check of every group of the kept one's configuration, whatever code made it; of other machines or data alone
    where there is nothing else."""
    same = [group for group in groups if _key(group) == kept.group_hash]
    if not same:
        return [Check(kept.label, None, None, False)]
    alike = [group for group in same if not _differing(group, kept, MUST_MATCH)]
    if not alike:
        return [Check(same[0].label, None, None, False, _differing(same[0], kept, MUST_MATCH))]
    return [_check(group, kept, tolerance) for group in alike]


def _check(group: Group, kept: BaselineGroup, tolerance: float) -> Check:
    then = [1 / value for value in kept.samples_per_s]
    change, interval = ratio(then, group.seconds_per_sample), ratio_interval(then, group.seconds_per_sample)
    fallen = change < 1 - tolerance and (interval is None or interval.high < 1)
    mismatches = _differing(group, kept, CONDITIONS)
    return Check(group.label, change, interval, fallen, mismatches, names_machine="machine" in kept.conditions)


def _differing(group: Group, kept: BaselineGroup, names: Sequence[str]) -> tuple[Mismatch, ...]:
    now = {name: getattr(group.conditions, name) for name in names if name in kept.conditions}
    then = {name: kept.conditions[name] for name in now}
    if isinstance(text := then.get(SETTINGS), str):
        then[SETTINGS] = without_torchruns(text)
    return tuple(mismatch(name, str(here), str(then[name])) for name, here in now.items() if here != then[name])


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
        raise UserError(f"--gate {path}: is no summary.json of Laptime's.") from error
