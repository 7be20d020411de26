"""An analysis in a few sentences: the question that the runs answer, the answer, and the problems."""

from collections.abc import Sequence

from laptime.analysis.analyze import Analysis
from laptime.analysis.compare import Comparison
from laptime.analysis.group import lap_word
from laptime.analysis.laws import efficiency
from laptime.analysis.mismatch import Mismatch
from laptime.analysis.results import Agreement, Verdict
from laptime.analysis.scaling import Family
from laptime.analysis.search import Search
from laptime.analysis.wording import (
    agreement_details,
    difference_words,
    interval_words,
    missing_baseline_words,
    times,
)
from laptime.text import counted

# Maximum number of families or comparisons in the answer.
_MAX_SENTENCES = 3
# Mismatches that the answer mentions. The remarks of the tables list all.
_EXPLAINING = ("threads_per_rank", "code")


def question(analysis: Analysis) -> str:
    """Return the question that the runs answer."""
    if analysis.searches:
        return f"What is best in {_and(analysis.searches[0].titles)}?"
    if analysis.families:
        sizes = sorted({size for family in analysis.families for size in family.world_sizes})
        return f"How does this training scale to {_and([str(size) for size in sizes])} ranks?"
    if analysis.comparisons:
        comparison = analysis.comparisons[0]
        values = list(dict.fromkeys(row.value for row in comparison.rows))
        return f"How fast does this training go with {comparison.key} = {_and(values)}?"
    return "How fast does this training go?"


def answer(analysis: Analysis) -> str:
    """Return the main figure with its interval, a warning about quality C, and requested devices that were absent."""
    absent = sorted({name for group in analysis.groups for name in group.absent_devices})
    words = _main_figure(analysis)
    num_disturbed = sum(group.quality == "C" for group in analysis.groups)
    if num_disturbed:
        which = "All" if num_disturbed == len(analysis.groups) else "Some"
        words += f" {which} of these figures have quality C: interference was detected."
    if absent:
        words += f" No results for {_and(absent)}: not available on this machine."
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
        group = max(analysis.groups, key=lambda group: group.samples_per_s.median)
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
        return f"{best}: the best of {num} groups in all metrics."
    return (
        f"{len(search.front)} of {num} groups are on the Pareto front: from {best} to "
        f"{_values_words(search, last)} with {search.groups[last].label}."
    )


def _values_words(search: Search, index: int) -> str:
    """Return a group's values: `val_accuracy 0.9812, epoch_time_s 1.303`."""
    pairs = zip(search.titles, search.values[index], strict=True)
    return ", ".join(f"{metric} {value:.4g}" for metric, value in pairs)


def _scaling_words(family: Family, with_name: bool) -> str:
    parts: list[str] = []
    for point in family.points[1:]:
        if point.speedup is None:
            continue
        details = [
            interval_words(point.speedup_interval, len(point.group.runs)),
            f"efficiency {efficiency(point.speedup, point.world_size):.0%}"
            + (", more threads than cores" if point.group.first.strategy.oversubscribed else ""),
            _results_words(point.agreement),
            _other_differences(point.mismatches),
        ]
        speed = f"at {times(point.speedup)}"
        speed = speed if parts else f"train {speed} the speed of one process"
        parts.append(f"{_ranks(point.world_size)} {speed} ({'; '.join(filter(None, details))})")
    faster = [p for p in family.points[1:] if p.speedup_interval is not None and p.speedup_interval.low > 1]
    best = max(faster, key=lambda point: point.speedup or 0, default=None)
    verdict = (
        f"Fastest: {_ranks(best.world_size)}."
        if best
        else "No number of ranks is significantly faster than one process."
    )
    name = f"{family.name}: " if with_name and family.name else ""
    return f"{name}{'; '.join(parts)}. {verdict}"


def _comparison_words(comparison: Comparison) -> str:
    row = max(comparison.rows[1:], key=lambda row: row.speedup)
    common = f" with {comparison.common}" if comparison.common else ""
    baseline = comparison.rows[0]
    speed = f"{comparison.key} = {row.value} trains at {times(row.speedup)} the speed of {baseline.value}{common}"
    interval = interval_words(row.interval, min(len(row.group.runs), len(baseline.group.runs)))
    parts = [f"{speed} ({interval})", f"the difference is {difference_words(row.difference)}"]
    parts += [_results_words(row.agreement), _other_differences(row.mismatches)]
    return f"{'; '.join(filter(None, parts))}."


def _other_differences(mismatches: Sequence[Mismatch]) -> str:
    """Name the differences that can explain a speedup as well as the compared key; empty: there is none."""
    words = [f"{item.name} ({item.value} and {item.baseline})" for item in mismatches if item.name in _EXPLAINING]
    return f"{_and(words)} differ{'s' if len(words) == 1 else ''}, too" if words else ""


def _first_sentences(sentences: Sequence[str], noun: str) -> str:
    num_more = len(sentences) - _MAX_SENTENCES
    rest = f" {num_more} more {noun} are in the tables." if num_more > 0 else ""
    return " ".join(sentences[:_MAX_SENTENCES]) + rest


def _results_words(agreement: Agreement | None) -> str:
    """Describe how results differ from the baseline's; empty: no difference is known."""
    if agreement is None or not (details := agreement_details(agreement)):
        return ""
    if agreement.verdict is Verdict.INCOMPARABLE:
        return f"results not compared: {details}"
    undecided = agreement.verdict is Verdict.UNKNOWN
    return f"{details} (one repeat each: inconclusive)" if undecided else f"results differ: {details}"


def _ranks(world_size: int) -> str:
    return counted(world_size, "rank")


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def problems(analysis: Analysis) -> list[str]:
    """Return what is missing for a speedup, and the command that measures it."""
    return [missing_baseline_words(family) for family in analysis.families if family.baseline is None]
