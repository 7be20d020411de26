"""Everything that a set of run directories says, in one object: what tables, plots and reports are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from laptime.analysis.compare import Comparison, compare, resolve_key, swept_keys
from laptime.analysis.group import Group
from laptime.analysis.groups import group_runs
from laptime.analysis.load import Run, Skipped, load_runs
from laptime.analysis.scaling import Family, families
from laptime.analysis.search import Search, searches
from laptime.errors import UserError

PROJECTED = (8, 16)


@dataclass(frozen=True)
class Analysis:
    """What was found.

    Attributes:
        folders: that were searched.
        runs: completed ones.
        skipped: run directories that don't count, with the reason.
        groups: of repeats.
        families: of groups that differ in the number of ranks alone.
        comparisons: of groups that differ in one other key alone.
        searches: for the best in several objectives.
        target_accuracy: time to which is reported; None: each run's own.
        project: numbers of ranks to project the scaling to.
    """

    folders: tuple[Path, ...]
    runs: tuple[Run, ...]
    skipped: tuple[Skipped, ...]
    groups: tuple[Group, ...]
    families: tuple[Family, ...]
    comparisons: tuple[Comparison, ...]
    searches: tuple[Search, ...]
    target_accuracy: float | None
    project: tuple[int, ...]


def analyze(
    folders: Sequence[Path],
    baseline: str | None = None,
    by: Sequence[str] = (),
    target_accuracy: float | None = None,
    project: Sequence[int] = PROJECTED,
) -> Analysis:
    """Read all runs in and below the folders, and compare them.

    Args:
        folders: run or sweep directories, any number, of any sweeps and machines.
        baseline: `key=value` that others are compared with; None: device=cpu, otherwise the value that was typed first.
        by: keys to compare by; empty: all in which the groups differ.
        target_accuracy: a share of 1; None: each run's own measure.target_accuracy.
        project: numbers of ranks to project the scaling to.

    Raises:
        UserError: a folder does not exist, a key is unknown, the baseline is missing.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder. Name run or sweep directories.")
    runs, skipped = load_runs(folders)
    groups = group_runs(runs)
    key, value = _baseline(baseline)
    keys = [resolve_key(groups, name) for name in by] if groups else []
    if key is not None and groups:
        key = resolve_key(groups, key)
        keys = list(dict.fromkeys([*keys, key]))
    comparisons = [
        found for name in keys or swept_keys(groups) for found in compare(groups, name, value if name == key else None)
    ]
    scaling = families(groups)
    for name in by if groups else ():
        if not any(comparison.key == resolve_key(groups, name) for comparison in comparisons):
            differing = ", ".join(swept_keys(groups)) or "none"
            raise UserError(f"--by {name}: no two groups differ in it alone. Keys in which they differ: {differing}.")
    return Analysis(
        tuple(folders), tuple(runs), tuple(skipped), tuple(groups), tuple(scaling), tuple(comparisons),
        tuple(searches(groups)), target_accuracy, tuple(project),
    )  # fmt: skip


def _baseline(text: str | None) -> tuple[str | None, str | None]:
    if text is None:
        return None, None
    key, sign, value = text.partition("=")
    if not sign or not key or not value:
        raise UserError(f"--baseline {text}: must be key=value, like --baseline device=cpu.")
    return key, value
