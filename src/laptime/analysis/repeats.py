"""How many repeats a sweep still needs for the interval that was asked for."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from laptime.analysis.groups import group_runs
from laptime.analysis.load import load_runs
from laptime.record.override_text import split


def missing_repeats(sweep_dir: Path, known: Mapping[int, Sequence[str]], target: float, most: int) -> list[list[str]]:
    """The overrides of one further run, with the next seed, for each group of a sweep that has not reached the target.

    Args:
        sweep_dir: of the sweep, its runs below it, named by their numbers.
        known: the overrides of its runs, by number. A group of which no run is known is not repeated.
        target: width of the 95% interval of throughput, as a share of it.
        most: repeats of a group, failed ones counted.
    """
    runs, skipped = load_runs([sweep_dir])
    jobs = {str(number): _job(overrides) for number, overrides in known.items()}
    tried: dict[tuple[str, ...], list[int]] = {}
    for path in [*(run.path for run in runs), *(each.path for each in skipped)]:
        if path.name in jobs:
            work, seed = jobs[path.name]
            tried.setdefault(work, []).append(seed)
    missing: list[list[str]] = []
    for group in group_runs(runs):
        # Runs that were added later may have been typed otherwise, and do the same work.
        works = dict.fromkeys(jobs[run.path.name][0] for run in group.runs if run.path.name in jobs)
        seeds = [seed for each in works for seed in tried[each]]
        if works and len(seeds) < most and not group.is_precise(target):
            missing.append([f"seed={max(seeds) + 1}", *next(iter(works))])
    return missing


def _job(overrides: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """The overrides of a run without its seed, and its seed (1 where none was typed)."""
    seeds = [split(override).value or "" for override in overrides if split(override).key == "seed"]
    work = tuple(override for override in overrides if split(override).key != "seed")
    return work, int(seeds[-1]) if seeds and seeds[-1].isdecimal() else 1
