"""Everything that a set of run directories says, in one object: what tables, plots and reports are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from laptime.analysis.compare import Comparison, compare, resolve_key, swept_keys
from laptime.analysis.groups import Group, group_runs
from laptime.analysis.laws import efficiency
from laptime.analysis.load import Run, Skipped, load_runs
from laptime.analysis.scaling import Family, families
from laptime.analysis.search import Search, searches
from laptime.analysis.statistics import HONEST_REPEATS, Interval
from laptime.errors import UserError
from laptime.text import counted

PROJECTED = (8, 16)
# More than that make no answer.
_SENTENCES = 3


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
        problems: what could not be reported and what to run for it.
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
    problems: tuple[str, ...]


def analyse(
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
    problems = [problem for family in scaling if (problem := family.missing) is not None]
    for name in by if groups else ():
        if not any(comparison.key == resolve_key(groups, name) for comparison in comparisons):
            differing = ", ".join(swept_keys(groups)) or "none"
            raise UserError(f"--by {name}: no two groups differ in it alone. Keys in which they differ: {differing}.")
    return Analysis(
        tuple(folders), tuple(runs), tuple(skipped), tuple(groups), tuple(scaling), tuple(comparisons),
        tuple(searches(groups)), target_accuracy, tuple(project), tuple(problems),
    )  # fmt: skip


def question(analysis: Analysis) -> str:
    """What the runs were made to find out."""
    if analysis.searches:
        return f"What is best in {_and(list(analysis.searches[0].metrics))}?"
    if analysis.families:
        sizes = sorted({size for family in analysis.families for size in family.world_sizes})
        return f"How does this training scale to {_and([str(size) for size in sizes])} ranks?"
    if analysis.comparisons:
        comparison = analysis.comparisons[0]
        values = list(dict.fromkeys(row.value for row in comparison.rows))
        return f"How fast does this training go with {comparison.key} = {_and(values)}?"
    return "How fast does this training go?"


def answer(analysis: Analysis) -> str:
    """The main figure in one sentence, with its interval; and whether a device that was asked for was absent."""
    absent = sorted({name for group in analysis.groups for name in group.absent_devices})
    words = _main_figure(analysis)
    num_disturbed = sum(group.quality == "C" for group in analysis.groups)
    if num_disturbed:
        which = "These" if num_disturbed == len(analysis.groups) else "Some of these"
        words += f" {which} figures are graded C: something surely disturbed them."
    if absent:
        words += f" Absent, so nothing can be said of it: {_and(absent)}."
    return words


def _main_figure(analysis: Analysis) -> str:
    if analysis.searches:
        return _search_words(analysis.searches[0])
    measured = [family for family in analysis.families if family.baseline is not None]
    if measured:
        return _and_more([_scaling_words(family, len(measured) > 1) for family in measured], "families")
    if analysis.comparisons:
        return _and_more([_comparison_words(comparison) for comparison in analysis.comparisons], "comparisons")
    if analysis.groups:
        group = max(analysis.groups, key=lambda each: each.samples_per_s.median)
        figures = f"{group.samples_per_s.median:,.0f} samples/s, {group.epoch_time_s.median:.3g} s per epoch"
        return f"{group.label}: {figures} (median of {counted(len(group.runs), 'run')})."
    return "No completed run was found."


def _search_words(search: Search) -> str:
    first, last, num = search.front[0], search.front[-1], len(search.groups)
    best = f"{search.words(first)} with {search.groups[first].label}"
    if len(search.metrics) == 1:
        return f"{best}: the best of {num} groups."
    if len(search.front) == 1:
        return f"{best}: of {num} groups the best in all of these."
    return (
        f"{len(search.front)} of {num} groups are beaten by no other in all of these: from {best} to "
        f"{search.words(last)} with {search.groups[last].label}."
    )


def _scaling_words(family: Family, named: bool) -> str:
    parts: list[str] = []
    for point in family.points[1:]:
        if point.speedup is None:
            continue
        share = f"efficiency {efficiency(point.speedup, point.world_size):.0%}"
        crowded = ", more threads than cores" if point.group.first["strategy"]["oversubscribed"] else ""
        about = interval_words(point.speedup_interval, len(point.group.runs))
        speed = f"at {times(point.speedup)}"
        speed = speed if parts else f"train {speed} the speed of one process"
        parts.append(f"{_ranks(point.world_size)} {speed} ({about}; {share}{crowded}{_wrong(point.agrees)})")
    surely = [p for p in family.points[1:] if p.speedup_interval is not None and p.speedup_interval.low > 1]
    best = max(surely, key=lambda point: point.speedup or 0, default=None)
    verdict = (
        f"Fastest: {_ranks(best.world_size)}." if best else "No number of ranks is shown to be faster than one process."
    )
    name = f"{family.name}: " if named and family.name else ""
    return f"{name}{'; '.join(parts)}. {verdict}"


def _comparison_words(comparison: Comparison) -> str:
    row = max(comparison.rows[1:], key=lambda each: each.speedup)
    common = f" with {comparison.common}" if comparison.common else ""
    than = comparison.rows[0].value
    words = f"{comparison.key} = {row.value} trains at {times(row.speedup)} the speed of {than}{common}"
    verdict = row.verdict if row.verdict.startswith("cannot") else f"is {row.verdict}"
    about = interval_words(row.interval, min(len(row.group.runs), len(comparison.rows[0].group.runs)))
    return f"{words} ({about}); the difference {verdict}{_wrong(row.agrees)}."


def _and_more(sentences: Sequence[str], what: str) -> str:
    rest = f" {len(sentences) - _SENTENCES} more {what} are in the tables." if len(sentences) > _SENTENCES else ""
    return " ".join(sentences[:_SENTENCES]) + rest


def times(ratio: float) -> str:
    """A ratio for people: 1.34 times."""
    return f"{ratio:.2f} times"


def interval_words(interval: Interval | None, num_repeats: int) -> str:
    """An interval for people."""
    if interval is None:
        return "one repeat: no interval"
    kind = "95% interval" if num_repeats >= HONEST_REPEATS else f"interval of {num_repeats} repeats"
    return f"{kind} {interval.low:.2f} to {interval.high:.2f}"


def _wrong(agrees: str) -> str:
    return f"; what was learnt {agrees}" if agrees.startswith("differs") else ""


def _ranks(world_size: int) -> str:
    return counted(world_size, "rank")


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _baseline(text: str | None) -> tuple[str | None, str | None]:
    if text is None:
        return None, None
    key, sign, value = text.partition("=")
    if not sign or not key or not value:
        raise UserError(f"--baseline {text}: must be key=value, like --baseline device=cpu.")
    return key, value
