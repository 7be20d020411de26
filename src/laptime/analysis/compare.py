"""Compares the values of one key (device, model, precision, ...) between groups whose other settings are equal."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from laptime.analysis.group import Group
from laptime.analysis.labels import (
    CONFIG_GROUPS,
    EXPERIMENT,
    common_label,
    differing_keys,
    keys_set_by_experiment,
    short_names,
    value_of,
)
from laptime.analysis.load import path_sort_key
from laptime.analysis.mismatch import Mismatch, differing_conditions
from laptime.analysis.results import Agreement, agreement
from laptime.analysis.scaling import DDP_KEYS
from laptime.analysis.statistics import Difference, Interval, difference, ratio, ratio_interval
from laptime.errors import UserError
from laptime.record.renamed import RENAMED
from laptime.text import short_name

_WHOLE = (*CONFIG_GROUPS, "device")
# Keys whose meaning depends on the value of another key.
_DEPENDENT = {"dataset.pipeline": ("dataset.num_workers",)}


@dataclass(frozen=True)
class Row:
    """One value, compared with the baseline.

    Attributes:
        value: the value of the compared key.
        group: the group with this value.
        speedup: samples_per_s divided by the baseline's.
        interval: bootstrap interval of the speedup; None with one repeat.
        difference: result of the test whether throughputs differ; None for the baseline itself.
        agreement: whether the group's scores agree with the baseline's; None for the baseline itself.
        mismatches: settings besides the compared key that differ from the baseline's.
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
    """The comparison of all values of one key, with equal other settings.

    Attributes:
        key: the compared key.
        common: label of the settings that all rows have in common.
        rows: one row per group, the baseline first.
    """

    key: str
    common: str
    rows: tuple[Row, ...]


def compare(groups: Sequence[Group], key: str, baseline: str | None = None) -> list[Comparison]:
    """Compare groups that differ only in one key.

    Args:
        groups: groups to compare.
        key: a key of the configuration, or a config group such as model or device.
        baseline: the baseline's value; None: cpu for devices, otherwise the value of the run with the lowest number.

    Returns:
        One comparison for each set of groups that are equal in everything else and have at least two values of the key.

    Raises:
        UserError: no group has the baseline's value.
    """
    comparable: dict[tuple[object, ...], list[Group]] = {}
    set_by_key = keys_set_by_experiment(groups) if key == EXPERIMENT else set()
    for group in groups:
        comparable.setdefault(_fixed_settings(group, key, set_by_key), []).append(group)
    comparisons: list[Comparison] = []
    without_baseline: list[str] = []
    for members in comparable.values():
        values = list(dict.fromkeys(value_of(group, key) for group in members))
        if len(values) < 2:
            continue
        first = value_of(min(members, key=lambda group: min(path_sort_key(run.path) for run in group.runs)), key)
        base_value = baseline if baseline is not None else "cpu" if key == "device" and "cpu" in values else first
        candidates = [group for group in members if value_of(group, key) == base_value]
        if not candidates:
            without_baseline.append(members[0].label)
            continue
        reference = max(candidates, key=lambda group: len(group.runs))
        compared = [group for group in members if group is not reference]
        rows = [_row(group, reference, key) for group in (reference, *compared)]
        comparisons.append(Comparison(key, common_label([group.label for group in members]), tuple(rows)))
    values = sorted({value_of(group, key) for group in groups})
    if baseline is not None and (without_baseline or baseline not in values):
        where = f" for {without_baseline[0]}" if without_baseline else ""
        raise UserError(
            f"--baseline {key}={baseline}: no completed run has this value{where}. Completed: "
            f"{key}={', '.join(values)}. Run the same command with {key}={baseline}."
        )
    return comparisons


def swept_keys(groups: Sequence[Group]) -> list[str]:
    """Return the keys in which the groups differ, without the number of ranks, which the scaling tables show."""
    left_out = {"strategy.world_size", "strategy.threads_per_rank", "strategy.wrap_single_rank"}
    return [key for key in differing_keys(groups) if key not in left_out]


def resolve_key(groups: Sequence[Group], name: str, option: str = "--by") -> str:
    """Return the full key for a name such as `training.precision`, `precision`, or `ws`, which tables print.

    Args:
        option: the option that the name is from, for messages.

    Raises:
        UserError: no key or several keys have that name.
    """
    keys = list(dict.fromkeys(key for group in groups for key in group.config))
    if name in _WHOLE or name in keys:
        return name
    matches = [key for key in keys if key.endswith(f".{name}") or short_name(key) == name]
    if len(matches) == 1:
        return matches[0]
    for old, new in RENAMED.items():
        if name in (old, old.rpartition(".")[2]):
            raise UserError(f"{option} {name}: was renamed to {new}. Use {option} {new}.")
    if matches:
        raise UserError(f"{option} {name}: matches {' and '.join(matches)}. Use the full key.")
    differing = ", ".join(short_names(differing_keys(groups)).values()) or "none"
    raise UserError(f"{option} {name}: these runs have no such key. Keys in which they differ: {differing}.")


def _row(group: Group, reference: Group, key: str) -> Row:
    times, base_times = group.seconds_per_sample, reference.seconds_per_sample
    is_reference = group is reference
    value = value_of(group, key)
    if not is_reference and value == value_of(reference, key):
        value = f"{value} (other conditions)"  # the remarks list them
    return Row(
        value=value,
        group=group,
        speedup=ratio(base_times, times),
        interval=None if is_reference else ratio_interval(base_times, times),
        difference=None if is_reference else difference(times, base_times),
        agreement=None if is_reference else agreement(group, reference),
        mismatches=() if is_reference else differing_conditions(group, reference),
    )


def _fixed_settings(group: Group, key: str, set_by_key: Collection[str] = ()) -> tuple[object, ...]:
    """Return the settings and conditions that must be equal, apart from the compared key.

    Between devices the machine may differ, and between data sets the data. Differences in code, torch and threads are
    allowed, and the row's remarks list them.
    """
    left_out = {"strategy.threads_per_rank", *_DEPENDENT.get(key, ()), *set_by_key}
    if key == "strategy.world_size":
        left_out |= set(DDP_KEYS)
    prefix = f"{key}." if key in _WHOLE else "\0"
    config = tuple(
        sorted(
            (name, repr(value))
            for name, value in group.config.items()
            if name != key and not name.startswith(prefix) and name not in left_out
        )
    )
    machine, checksum, instructions = group.conditions.must_match
    hardware = () if key in ("device", EXPERIMENT) else (machine, instructions)
    return config, hardware, "" if key in ("dataset", EXPERIMENT) else checksum
