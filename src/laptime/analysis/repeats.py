"""Finds the repeats that a sweep still needs to reach measure.target_interval."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from laptime.analysis.groups import group_runs
from laptime.analysis.load import load_runs
from laptime.record.override_text import split


def missing_repeats(
    sweep_dir: Path, overrides_by_run: Mapping[int, Sequence[str]], target: float, most: int
) -> list[list[str]]:
    """Return the overrides of a run with the next seed, for each group of a sweep that has not reached the target.

    Args:
        sweep_dir: the directory of the sweep, with one directory per run, named by its number.
        overrides_by_run: the overrides of the runs, by number. A group that has none of these runs is not repeated.
        target: the width of the 95% interval of throughput, as a fraction of throughput.
        most: maximum number of repeats of a group, including failed ones.
    """
    runs, skipped = load_runs([sweep_dir])
    jobs = {str(number): _job(overrides) for number, overrides in overrides_by_run.items()}
    seeds_by_work: dict[tuple[str, ...], list[int]] = {}
    for path in [*(run.path for run in runs), *(directory.path for directory in skipped)]:
        if path.name in jobs:
            work, seed = jobs[path.name]
            seeds_by_work.setdefault(work, []).append(seed)
    missing: list[list[str]] = []
    for group in group_runs(runs):
        # Runs that were added later may have other overrides that lead to the same configuration.
        works = dict.fromkeys(jobs[run.path.name][0] for run in group.runs if run.path.name in jobs)
        seeds = [seed for work in works for seed in seeds_by_work[work]]
        if works and len(seeds) < most and not group.is_precise(target):
            missing.append([f"seed={max(seeds) + 1}", *next(iter(works))])
    return missing


def _job(overrides: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """Return the overrides of a run without its seed, and its seed (1 if there is no override for it)."""
    seeds = [split(override).value or "" for override in overrides if split(override).key == "seed"]
    work = tuple(override for override in overrides if split(override).key != "seed")
    return work, int(seeds[-1]) if seeds and seeds[-1].isdecimal() else 1
