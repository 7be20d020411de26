"""An analysis in a few sentences: the question that the runs ask, the answer, and what is missing for more."""

from collections.abc import Sequence

from laptime.analysis.analyze import Analysis
from laptime.analysis.compare import Comparison
from laptime.analysis.group import lap_word
from laptime.analysis.laws import efficiency
from laptime.analysis.results import Agreement, Verdict
from laptime.analysis.scaling import Family
from laptime.analysis.search import Search
from laptime.analysis.wording import (
    agreement_words,
    difference_words,
    interval_words,
    missing_baseline_words,
    times,
    undecided_words,
)
from laptime.text import counted

# More than that make no answer.
_SENTENCES = 3


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
        return _first_sentences([_scaling_words(family, len(measured) > 1) for family in measured], "families")
    if analysis.comparisons:
        return _first_sentences([_comparison_words(comparison) for comparison in analysis.comparisons], "comparisons")
    if analysis.groups:
        group = max(analysis.groups, key=lambda each: each.samples_per_s.median)
        tokens = "" if group.tokens_per_s is None else f" {group.tokens_per_s:,.0f} tokens/s,"
        time = f"{group.epoch_time_s.median:.3g} s per {lap_word(analysis.groups)}"
        figures = f"{group.samples_per_s.median:,.0f} samples/s,{tokens} {time}"
        return f"{group.label}: {figures} (median of {counted(len(group.runs), 'run')})."
    return "No completed run was found."


def _search_words(search: Search) -> str:
    first, last, num = search.front[0], search.front[-1], len(search.groups)
    best = f"{_values_words(search, first)} with {search.groups[first].label}"
    if len(search.metrics) == 1:
        return f"{best}: the best of {num} groups."
    if len(search.front) == 1:
        return f"{best}: of {num} groups the best in all of these."
    return (
        f"{len(search.front)} of {num} groups are beaten by no other in all of these: from {best} to "
        f"{_values_words(search, last)} with {search.groups[last].label}."
    )


def _values_words(search: Search, place: int) -> str:
    """A group's values: `val_accuracy 0.9812, epoch_time_s 1.303`."""
    each = zip(search.metrics, search.values[place], strict=True)
    return ", ".join(f"{metric} {value:.4g}" for metric, value in each)


def _scaling_words(family: Family, named: bool) -> str:
    parts: list[str] = []
    for point in family.points[1:]:
        if point.speedup is None:
            continue
        share = f"efficiency {efficiency(point.speedup, point.world_size):.0%}"
        crowded = ", more threads than cores" if point.group.first.strategy.oversubscribed else ""
        about = interval_words(point.speedup_interval, len(point.group.runs))
        speed = f"at {times(point.speedup)}"
        speed = speed if parts else f"train {speed} the speed of one process"
        parts.append(f"{_ranks(point.world_size)} {speed} ({about}; {share}{crowded}{_wrong(point.agreement)})")
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
    verdict = difference_words(row.difference)
    if row.difference is None or row.difference.decidable:
        verdict = f"is {verdict}"
    about = interval_words(row.interval, min(len(row.group.runs), len(comparison.rows[0].group.runs)))
    return f"{words} ({about}); the difference {verdict}{_wrong(row.agreement)}."


def _first_sentences(sentences: Sequence[str], what: str) -> str:
    rest = f" {len(sentences) - _SENTENCES} more {what} are in the tables." if len(sentences) > _SENTENCES else ""
    return " ".join(sentences[:_SENTENCES]) + rest


def _wrong(agreement: Agreement | None) -> str:
    if agreement is None or agreement.verdict is Verdict.AGREES:
        return ""
    if agreement.verdict is Verdict.UNKNOWN:
        undecided = undecided_words(agreement)
        return f"; {undecided} (one repeat each: no verdict)" if undecided else ""
    return f"; what was learnt {agreement_words(agreement)}"


def _ranks(world_size: int) -> str:
    return counted(world_size, "rank")


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def problems(analysis: Analysis) -> list[str]:
    """What could not be reported, and what to run for it."""
    return [missing_baseline_words(family) for family in analysis.families if family.baseline is None]
