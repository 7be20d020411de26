"""Reads run directories and compares the runs. Tables, plots and reports are made from the result."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from laptime.analysis.compare import Comparison, compare, resolve_key, swept_keys
from laptime.analysis.group import Group, Target, all_scores
from laptime.analysis.groups import group_runs
from laptime.analysis.load import Run, Skipped, load_runs
from laptime.analysis.scaling import Family, families
from laptime.analysis.search import Search, searches
from laptime.errors import UserError
from laptime.record.score import ACCURACY, descriptions
from laptime.record.walk import require_folders

PROJECTED = (8, 16)


@dataclass(frozen=True)
class Analysis:
    """The result of an analysis.

    Attributes:
        folders: the folders that were searched.
        runs: completed runs.
        skipped: run directories that were skipped, with the reason.
        groups: groups of repeats.
        families: groups that differ only in the number of ranks.
        comparisons: groups that differ only in one other key.
        searches: hyperparameter searches.
        target: the score whose time to reach it the reports show; None: each run's measure.target_score or
            measure.target_accuracy.
        project: numbers of ranks to project the scaling to.
    """

    folders: tuple[Path, ...]
    runs: tuple[Run, ...]
    skipped: tuple[Skipped, ...]
    groups: tuple[Group, ...]
    families: tuple[Family, ...]
    comparisons: tuple[Comparison, ...]
    searches: tuple[Search, ...]
    target: Target | None
    project: tuple[int, ...]


def analyze(
    folders: Sequence[Path],
    baseline: str | None = None,
    by: Sequence[str] = (),
    target_accuracy: float | None = None,
    project: Sequence[int] = PROJECTED,
    target_score: float | None = None,
) -> Analysis:
    """Read all runs in and below the folders, and compare them.

    Args:
        folders: run or sweep directories, from any sweeps and machines.
        baseline: `key=value` of the baseline; None: device=cpu, or the value of the run with the lowest number.
        by: keys to compare by; empty: all keys in which the groups differ.
        target_accuracy: the accuracy to reach, a fraction; None: each run's measure.target_accuracy.
        project: numbers of ranks to project the scaling to.
        target_score: the score to reach, whatever the runs' score is; None: each run's measure.target_score.

    Raises:
        UserError: a folder does not exist, a key is unknown, the baseline is missing, or the runs don't have the score
            of the target.
    """
    require_folders(folders)
    runs, skipped = load_runs(folders)
    groups = group_runs(runs)
    key, value = _baseline(baseline)
    keys = [resolve_key(groups, name) for name in by] if groups else []
    if key is not None and groups:
        key = resolve_key(groups, key, "--baseline")
        keys = list(dict.fromkeys([*keys, key]))
    comparisons = [
        comparison
        for name in keys or swept_keys(groups)
        for comparison in compare(groups, name, value if name == key else None)
    ]
    scaling = families(groups)
    for name in by if groups else ():
        if not any(comparison.key == resolve_key(groups, name) for comparison in comparisons):
            differing = ", ".join(swept_keys(groups)) or "none"
            raise UserError(f"--by {name}: no two groups differ only in it. Keys in which they differ: {differing}.")
    return Analysis(
        tuple(folders), tuple(runs), tuple(skipped), tuple(groups), tuple(scaling), tuple(comparisons),
        tuple(searches(groups)), _target(groups, target_accuracy, target_score), tuple(project),
    )  # fmt: skip


def _target(groups: Sequence[Group], accuracy: float | None, value: float | None) -> Target | None:
    scores = all_scores(groups)
    if accuracy is not None:
        if ACCURACY not in scores:
            raise UserError(
                f"--target-accuracy {accuracy}: the score of these runs is {descriptions(scores)}. Use --target-score."
            )
        return Target(ACCURACY, accuracy)
    if value is None:
        return None
    if len(scores) > 1:
        raise UserError(
            f"--target-score {value}: these runs have different scores: {descriptions(scores)}. Analyze the runs of "
            "one score at a time."
        )
    if scores[0].unit == "%" and not 0 < value <= 1:
        raise UserError(
            f"--target-score {value}: must be a fraction above 0 and at most 1, because the score is {scores[0].name}."
        )
    return Target(scores[0], value)


def _baseline(text: str | None) -> tuple[str | None, str | None]:
    if text is None:
        return None, None
    key, sign, value = text.partition("=")
    if not sign or not key or not value:
        raise UserError(f"--baseline {text}: must be key=value. Example: --baseline device=cpu.")
    return key, value
