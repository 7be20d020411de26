"""A gate for CI: has throughput fallen since a summary that was kept?"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laptime.analysis.analyse import Analysis
from laptime.analysis.groups import Group
from laptime.analysis.statistics import Interval, ratio, ratio_interval
from laptime.errors import UserError


@dataclass(frozen=True)
class Check:
    """One group against the kept one.

    Attributes:
        group: its label.
        change: ratio of throughputs, now over then.
        interval: of it; None with one repeat on either side.
        fallen: whether it fell by more than the tolerance, and the interval leaves no doubt that it fell.
        remark: what differs besides, such as the machine.
    """

    group: str
    change: float
    interval: Interval | None
    fallen: bool
    remark: str


def check(analysis: Analysis, kept: Path, tolerance: float) -> list[Check]:
    """Compare every group with the one of the same configuration in a summary.json.

    Raises:
        UserError: the file is no summary, or has none of these groups.
    """
    then = _read(kept)
    checks = [_check(group, then[key], tolerance) for group in analysis.groups if (key := _key(group)) in then]
    if not checks:
        raise UserError(
            f"--gate {kept}: has none of these groups. Keep the summary.json of runs of the same configuration."
        )
    return checks


def _check(group: Group, kept: Mapping[str, Any], tolerance: float) -> Check:
    now, then = group.throughputs, [float(value) for value in kept["samples_per_s"]]
    change, interval = ratio(now, then), ratio_interval(now, then)
    fallen = change < 1 - tolerance and (interval is None or interval.high < 1)
    machine = kept.get("conditions", {}).get("machine")
    remark = "" if machine == group.conditions.machine else f"machine {group.conditions.machine}, then {machine}"
    return Check(group.label, change, interval, fallen, remark)


def _key(group: Group) -> str:
    return str(group.first["group_hash"])


def _read(path: Path) -> dict[str, Mapping[str, Any]]:
    try:
        summary = json.loads(path.read_bytes())
        groups = {str(group["group_hash"]): group for group in summary["groups"]}
        for group in groups.values():
            if not group["samples_per_s"] or not all(value > 0 for value in group["samples_per_s"]):
                raise ValueError
        return groups
    except OSError as error:
        raise UserError(f"--gate {path}: can't be read ({error.strerror}).") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"--gate {path}: is no summary.json of Laptime's.") from error
