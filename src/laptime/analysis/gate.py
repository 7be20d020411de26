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
    now = {_key(group): group for group in analysis.groups}
    then = _read(kept)
    if not now.keys() & then.keys():
        raise UserError(
            f"--gate {kept}: has none of these groups. Keep the summary.json of runs of the same configuration."
        )
    return [_check(now.get(key), group, tolerance) for key, group in then.items()]


def _check(group: Group | None, kept: Mapping[str, Any], tolerance: float) -> Check:
    label = str(kept.get("label"))
    if group is None:
        return Check(label, None, None, False, "no completed run of it now")
    differing = [
        f"{name} {getattr(group.conditions, name)}, then {value}"
        for name, value in kept.get("conditions", {}).items()
        if value != getattr(group.conditions, name, value)
    ]
    if any(each.startswith("machine") for each in differing):
        return Check(group.label, None, None, False, "; ".join(differing))
    then = [1 / float(value) for value in kept["samples_per_s"]]
    change, interval = ratio(then, group.seconds_per_sample), ratio_interval(then, group.seconds_per_sample)
    fallen = change < 1 - tolerance and (interval is None or interval.high < 1)
    return Check(group.label, change, interval, fallen, "; ".join(differing))


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
