"""A gate for CI: has throughput fallen since a summary that was kept?"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laptime.analysis.analyse import Analysis
from laptime.analysis.groups import CONDITIONS, Group
from laptime.analysis.statistics import Interval, ratio, ratio_interval
from laptime.errors import UserError


@dataclass(frozen=True)
class Check:
    """One kept group against the same configuration now.

    Attributes:
        group: its label.
        change: ratio of throughputs, now over then; None: it was not measured now, or on another machine.
        interval: of it; None with one repeat on either side.
        fallen: whether it fell by more than the tolerance, and the interval leaves no doubt that it fell.
        remark: what differs besides.
    """

    group: str
    change: float | None
    interval: Interval | None
    fallen: bool
    remark: str

    @property
    def verdict(self) -> str:
        return "missing" if self.change is None else "fallen" if self.fallen else "ok"


def check(analysis: Analysis, kept: Path, tolerance: float) -> list[Check]:
    """Compare every group of a summary.json with the one of the same configuration now.

    Raises:
        UserError: the file is no summary, or has none of these groups.
    """
    then = _read(kept)
    if not {_key(group) for group in analysis.groups} & {str(group["group_hash"]) for group in then}:
        raise UserError(
            f"--gate {kept}: has none of these groups. Keep the summary.json of runs of the same configuration."
        )
    return [found for group in then for found in _checks(analysis.groups, group, tolerance)]


def _checks(groups: Sequence[Group], kept: Mapping[str, Any], tolerance: float) -> list[Check]:
    """A check of every group of the kept one's configuration, whatever code made it; of other machines or data alone
    where there is nothing else."""
    same = [group for group in groups if _key(group) == str(kept["group_hash"])]
    if not same:
        return [Check(str(kept.get("label")), None, None, False, "no completed run of it now")]
    alike = [group for group in same if not _unlike(group, kept, ("machine", "checksum", "instructions"))]
    if not alike:
        reasons = "; ".join(_unlike(same[0], kept, ("machine", "checksum", "instructions")))
        return [Check(same[0].label, None, None, False, reasons)]
    return [_check(group, kept, tolerance) for group in alike]


def _check(group: Group, kept: Mapping[str, Any], tolerance: float) -> Check:
    then = [1 / float(value) for value in kept["samples_per_s"]]
    change, interval = ratio(then, group.seconds_per_sample), ratio_interval(then, group.seconds_per_sample)
    fallen = change < 1 - tolerance and (interval is None or interval.high < 1)
    remarks = _unlike(group, kept, CONDITIONS)
    if "machine" not in (kept.get("conditions") or {}):
        remarks.append("the kept summary does not say which machine it is of")
    return Check(group.label, change, interval, fallen, "; ".join(remarks))


def _unlike(group: Group, kept: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    conditions = kept.get("conditions") or {}
    return [
        f"{name} {getattr(group.conditions, name)}, then {conditions[name]}"
        for name in names
        if name in conditions and conditions[name] != getattr(group.conditions, name)
    ]


def _key(group: Group) -> str:
    return str(group.first["group_hash"])


def _is_speed(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _read(path: Path) -> list[Mapping[str, Any]]:
    try:
        groups: list[Mapping[str, Any]] = json.loads(path.read_bytes())["groups"]
        for group in groups:
            speeds, conditions = group["samples_per_s"], group.get("conditions") or {}
            if not speeds or not all(map(_is_speed, speeds)) or not isinstance(conditions, dict):
                raise ValueError
            str(group["group_hash"])
        return groups
    except OSError as error:
        raise UserError(f"--gate {path}: can't be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--gate {path}: is no summary.json of Laptime's.") from error
