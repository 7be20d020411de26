"""How many repeats a sweep still needs for the interval that was asked for."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from laptime.analysis.groups import group_runs
from laptime.analysis.load import load_runs

# What Hydra writes beside a job: its overrides.
_OVERRIDES = Path(".hydra") / "overrides.yaml"


def missing_repeats(sweep_dir: Path, target: float, most: int) -> list[Sequence[str]]:
    """The overrides of one further run, with the next seed, for each group of a sweep that has not reached the target.

    Args:
        sweep_dir: of the sweep, its runs below it.
        target: width of the 95% interval of throughput, as a share of it.
        most: repeats of a group, failed ones counted.
    """
    runs, skipped = load_runs([sweep_dir])
    tried: dict[tuple[str, ...], list[int]] = {}
    for path in [*(run.path for run in runs), *(each.path for each in skipped)]:
        work, seed = _job(path)
        tried.setdefault(work, []).append(seed)
    jobs: list[Sequence[str]] = []
    for group in group_runs(runs):
        # Runs that were added later may have been typed otherwise, and do the same work.
        works = dict.fromkeys(_job(run.path)[0] for run in group.runs)
        seeds = [seed for each in works for seed in tried[each]]
        work = next(iter(works))
        if len(seeds) < most and not group.is_precise(target):
            jobs.append([f"seed={max(seeds) + 1}", *work])
    return jobs


def _job(path: Path) -> tuple[tuple[str, ...], int]:
    """The overrides of a run without its seed, and its seed (1 where none was typed)."""
    try:
        overrides = [str(override) for override in yaml.safe_load((path / _OVERRIDES).read_text()) or []]
    except (OSError, yaml.YAMLError):
        overrides = []
    seeds = [override.partition("=")[2] for override in overrides if override.startswith("seed=")]
    work = tuple(override for override in overrides if not override.startswith("seed="))
    return work, int(seeds[-1]) if seeds and seeds[-1].isdecimal() else 1
