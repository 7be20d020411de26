"""Finds differences between two compared groups, apart from the compared key."""

from dataclasses import dataclass

from laptime.analysis.conditions import CONDITIONS, differing_settings
from laptime.analysis.group import Group

# Keys that may differ between compared groups. The comparison then lists the difference.
MAY_DIFFER = ("strategy.threads_per_rank",)
HOST = "host"
SETTINGS = "settings"


@dataclass(frozen=True)
class Mismatch:
    """A difference between a group and its baseline.

    Attributes:
        name: a field of Conditions, the last part of a key, or HOST.
        value: the value of the group; empty for HOST.
        baseline: the value of the baseline; empty for HOST.
    """

    name: str
    value: str = ""
    baseline: str = ""


def mismatch(name: str, value: str, baseline: str) -> Mismatch:
    """Make a mismatch. If it is about settings, only the variables that differ are kept."""
    if name == SETTINGS:
        value, baseline = differing_settings([value, baseline])
    return Mismatch(name, value, baseline)


def differing_conditions(group: Group, baseline: Group) -> tuple[Mismatch, ...]:
    """Return the differences from the baseline, apart from the compared key."""
    keys = [(key.rpartition(".")[2], group.config.get(key), baseline.config.get(key)) for key in MAY_DIFFER]
    conditions = [(name, getattr(group.conditions, name), getattr(baseline.conditions, name)) for name in CONDITIONS]
    mismatches = [mismatch(name, str(value), str(base)) for name, value, base in keys + conditions if value != base]
    if group.conditions.machine == baseline.conditions.machine and group.hosts != baseline.hosts:
        mismatches.append(Mismatch(HOST))
    return tuple(mismatches)
