"""What two groups that are compared differ in beside what is compared."""

from dataclasses import dataclass

from laptime.analysis.conditions import CONDITIONS, differing_settings
from laptime.analysis.group import Group

# Keys that may differ between groups that are compared; the difference is then said.
MAY_DIFFER = ("strategy.threads_per_rank",)
HOST = "host"
SETTINGS = "settings"


@dataclass(frozen=True)
class Mismatch:
    """Something that two groups differ in.

    Attributes:
        name: a field of Conditions, the last part of a key, or HOST.
        here: its value for the group; empty for HOST.
        there: its value for the baseline; empty for HOST.
    """

    name: str
    here: str = ""
    there: str = ""


def mismatch(name: str, here: str, there: str) -> Mismatch:
    """A mismatch; of settings, the variables that differ alone."""
    if name == SETTINGS:
        here, there = differing_settings([here, there])
    return Mismatch(name, here, there)


def differing_conditions(group: Group, baseline: Group) -> tuple[Mismatch, ...]:
    """What differs from the baseline beside what is compared."""
    keys = [(key.rpartition(".")[2], group.config.get(key), baseline.config.get(key)) for key in MAY_DIFFER]
    conditions = [(name, getattr(group.conditions, name), getattr(baseline.conditions, name)) for name in CONDITIONS]
    found = [mismatch(name, str(here), str(there)) for name, here, there in keys + conditions if here != there]
    if group.conditions.machine == baseline.conditions.machine and group.hosts != baseline.hosts:
        found.append(Mismatch(HOST))
    return tuple(found)
