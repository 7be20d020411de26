"""One thing compared with all else equal: devices, models, precisions, whatever was swept."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from laptime.analysis.group import Group
from laptime.analysis.labels import (
    CONFIG_GROUPS,
    EXPERIMENT,
    common_label,
    differing_keys,
    keys_set_by_experiment,
    value_of,
)
from laptime.analysis.load import path_sort_key
from laptime.analysis.mismatch import Mismatch, differing_conditions
from laptime.analysis.results import Agreement, agreement
from laptime.analysis.scaling import DDP_KEYS
from laptime.analysis.statistics import Difference, Interval, difference, ratio, ratio_interval
from laptime.errors import UserError
from laptime.record.renamed import RENAMED

_WHOLE = (*CONFIG_GROUPS, "device")
# Keys that only have a meaning with some values of another.
_DEPENDENT = {"dataset.pipeline": ("dataset.num_workers",)}


@dataclass(frozen=True)
class Row:
    """One value against the baseline.

    Attributes:
        value: of the compared key.
        group: its runs.
        speedup: samples_per_s over the baseline's, with its bootstrap interval; None with one repeat.
        difference: the test whether throughputs differ; None for the baseline itself.
        agreement: whether it learns the same; None for the baseline itself.
        mismatches: what differs besides.
    """

    value: str
    group: Group
    speedup: float
    interval: Interval | None
    difference: Difference | None
    agreement: Agreement | None
    mismatches: tuple[Mismatch, ...]


@dataclass(frozen=True)
class Comparison:
    """All values of one key, everything else equal; the baseline first.

    Attributes:
        key: what is compared.
        common: the label of what its rows share.
        rows: one per group.
    """

    key: str
    common: str
    rows: tuple[Row, ...]


def compare(groups: Sequence[Group], key: str, baseline: str | None = None) -> list[Comparison]:
    """Compare the groups that differ in one key alone.

    Args:
        groups: any.
        key: of the configuration, or a config group such as model or device.
        baseline: its value; None: cpu for devices, otherwise that of the run of the lowest number, which was typed
            first.

    Returns:
        One comparison for each set of groups that are alike otherwise and have at least two values of the key.

    Raises:
        UserError: no group has the baseline's value.
    """
    alike: dict[tuple[object, ...], list[Group]] = {}
    set_by_key = keys_set_by_experiment(groups) if key == EXPERIMENT else set()
    for group in groups:
        alike.setdefault(_rest(group, key, set_by_key), []).append(group)
    found: list[Comparison] = []
    without: list[str] = []
    for members in alike.values():
        values = list(dict.fromkeys(value_of(group, key) for group in members))
        if len(values) < 2:
            continue
        first = value_of(min(members, key=lambda group: min(path_sort_key(run.path) for run in group.runs)), key)
        wanted = baseline if baseline is not None else "cpu" if key == "device" and "cpu" in values else first
        candidates = [group for group in members if value_of(group, key) == wanted]
        if not candidates:
            without.append(members[0].label)
            continue
        reference = max(candidates, key=lambda group: len(group.runs))
        others = [group for group in members if group is not reference]
        rows = [_row(group, reference, key) for group in (reference, *others)]
        found.append(Comparison(key, common_label([group.label for group in members]), tuple(rows)))
    known = sorted({value_of(group, key) for group in groups})
    if baseline is not None and (without or baseline not in known):
        where = f" for {without[0]}" if without else ""
        raise UserError(
            f"--baseline {key}={baseline}: no completed run has it{where}; there are {key}={', '.join(known)}. "
            f"Run the same command with {key}={baseline}."
        )
    return found


def swept_keys(groups: Sequence[Group]) -> list[str]:
    """What the groups differ in and can be compared by: not the number of ranks, which has tables of its own."""
    left_out = {"strategy.world_size", "strategy.threads_per_rank", "strategy.wrap_single_rank"}
    return [key for key in differing_keys(groups) if key not in left_out]


def resolve_key(groups: Sequence[Group], name: str) -> str:
    """The key that a user means by `precision` or `training.precision`.

    Raises:
        UserError: none or several keys have that name.
    """
    known = list(dict.fromkeys(key for group in groups for key in group.config))
    if name in _WHOLE or name in known:
        return name
    found = [key for key in known if key.endswith(f".{name}")]
    if len(found) == 1:
        return found[0]
    for old, new in RENAMED.items():
        if name in (old, old.rpartition(".")[2]):
            raise UserError(f"--by {name}: is called {new} now. Write that.")
    differing = ", ".join(swept_keys(groups)) or "none"
    if found:
        raise UserError(f"--by {name}: could be {' or '.join(found)}. Write the whole key.")
    raise UserError(f"--by {name}: no such key in these runs. Keys in which they differ: {differing}.")


def _row(group: Group, reference: Group, key: str) -> Row:
    own, base = group.seconds_per_sample, reference.seconds_per_sample
    is_reference = group is reference
    value = value_of(group, key)
    if not is_reference and value == value_of(reference, key):
        value = f"{value}, otherwise"  # as the remarks say
    return Row(
        value=value,
        group=group,
        speedup=ratio(base, own),
        interval=None if is_reference else ratio_interval(base, own),
        difference=None if is_reference else difference(own, base),
        agreement=None if is_reference else agreement(group, reference),
        mismatches=() if is_reference else differing_conditions(group, reference),
    )


def _rest(group: Group, key: str, set_by_key: Collection[str] = ()) -> tuple[object, ...]:
    """All but the compared key that must be equal. Machines may differ between devices, which are part of them, and the
    data between data sets; code, torch and threads are named in the row instead."""
    left_out = {"strategy.threads_per_rank", *_DEPENDENT.get(key, ()), *set_by_key}
    if key == "strategy.world_size":
        left_out |= set(DDP_KEYS)
    whole = f"{key}." if key in _WHOLE else "\0"
    config = tuple(
        sorted(
            (name, repr(value))
            for name, value in group.config.items()
            if name != key and not name.startswith(whole) and name not in left_out
        )
    )
    machine, checksum, instructions = group.conditions.must_match
    of_device = () if key in ("device", EXPERIMENT) else (machine, instructions)
    return config, of_device, "" if key in ("dataset", EXPERIMENT) else checksum
