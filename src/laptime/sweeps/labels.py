"""Finds the overrides in which the runs of a sweep differ, and makes labels from them."""

from collections.abc import Collection, Sequence

from laptime.config.overrides import key_of, parse
from laptime.config.security import PER_INVOCATION_KEYS
from laptime.record.masking import mask_command
from laptime.runner.job import folder_name
from laptime.text import short_name

# A resumed sweep may have other values of these. They are never shown as swept.
NOT_SWEPT_KEYS = ("measure.target_interval", "measure.max_repeats", "sweep.on_failure")


def shared_overrides(jobs: Sequence[list[str]]) -> set[str]:
    """Return the overrides that every job of a sweep has."""
    return set.intersection(*map(set, jobs)) if jobs else set()


def swept(overrides: list[str], shared: Collection[str]) -> list[str]:
    """Return the overrides of a job that not every job of the sweep has, with secrets masked.

    Args:
        overrides: the overrides of the job.
        shared: the `shared_overrides` of the sweep.
    """
    differing = [override for override in overrides if override not in shared]
    hidden_keys = (*NOT_SWEPT_KEYS, *PER_INVOCATION_KEYS)
    return mask_command([override for override in differing if key_of(override) not in hidden_keys])


def sweep_label(overrides: list[str], shared: Collection[str]) -> str:
    """Return a label such as `ws=2 seed=1`, made of the swept overrides of a job.

    It is short enough for a folder name, and secrets are masked.

    Args:
        overrides: the overrides of the job.
        shared: the `shared_overrides` of the sweep.
    """
    parts = []
    for override in map(parse, swept(overrides, shared)):
        key = f"~{override.full_key}" if override.is_deletion else override.full_key
        parts.append(f"{short_name(key)}={override.value_text or ''}")
    return folder_name(" ".join(parts))


def drop_shared_keys(overrides: list[str], shared: Collection[str]) -> list[str]:
    """Drop the overrides of keys that every job sets to the same value. They are compared by key, because a search
    sweeper may format values differently (`False` for `false`)."""
    shared_keys = {parse(override).full_key for override in shared}
    return [override for override in overrides if parse(override).full_key not in shared_keys]
