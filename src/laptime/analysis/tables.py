"""The tables that people read: groups, scaling, comparisons, searches, steps and resources."""

import math
from collections.abc import Sequence
from dataclasses import replace

from laptime.analysis.analyze import Analysis
from laptime.analysis.cells import (
    REMARKS,
    RESULTS,
    gigabytes,
    interval_note,
    milliseconds,
    percent_of,
    results_cell,
    seconds,
    three_digits,
    tokens_cells,
    tokens_head,
    with_interval,
    with_spread,
)
from laptime.analysis.compare import Comparison
from laptime.analysis.group import Group, Reached, any_trained_by_laptime, lap_word, reached
from laptime.analysis.remarks import remarks_of
from laptime.analysis.scaling_tables import overheads, scaling
from laptime.analysis.search import Search
from laptime.analysis.table import Cell, Column, Table, columns, row
from laptime.analysis.wording import difference_words, source_of_steps
from laptime.record.schema import PHASES
from laptime.text import escape_control_chars, percent

# Of a search for one thing so many are shown.
_MOST_TRIALS = 10


def tables(analysis: Analysis) -> list[Table]:
    """All tables; those, and columns of those, that would be empty are left out."""
    found = [_groups(analysis.groups, analysis.target_accuracy)] if analysis.groups else []
    for family in analysis.families:
        found += [scaling(family, analysis.project, analysis.groups), *overheads(family)]
    found += [_comparison(comparison, analysis.groups) for comparison in analysis.comparisons]
    found[:0] = [_trials(search) for search in analysis.searches]
    found += _steps(analysis.groups) + _resources(analysis.groups)
    if analysis.skipped:
        rows = tuple(row(escape_control_chars(str(skipped.path)), skipped.reason) for skipped in analysis.skipped)
        found.append(Table("Not counted", columns("run", "reason"), rows))
    return [table.without_empty_columns() for table in found]


def _trials(search: Search) -> Table:
    """The best ones, or those that no other beats."""
    several = len(search.metrics) > 1
    places = search.front if several else search.ranked[:_MOST_TRIALS]
    rows = []
    for place in places:
        group, values = search.groups[place], search.values[place]
        rows.append(row(group.label, *(f"{value:.4g}" for value in values), group.quality))
    note = f"The best {len(rows)} of {len(search.groups)} groups, by {search.metrics[0]}."
    if several:
        note = (
            f"The {len(rows)} of {len(search.groups)} groups that no other beats: none is at least as good in all of "
            "these and better in one."
        )
    title = "Pareto front" if several else "Best trials"
    return Table(title, columns("group", *search.metrics, "quality"), tuple(rows), (note,))


def _groups(groups: Sequence[Group], target: float | None) -> Table:
    times = [reached(group, target) for group in groups]
    with_target = any(time is not None for time in times)
    rows = []
    for group, time in zip(groups, times, strict=True):
        epoch, speed = group.epoch_time_s, group.samples_per_s
        cells: list[str | Cell] = [
            group.label,
            str(len(group.runs)),
            group.quality,
            seconds(epoch.median),
            f"{seconds(epoch.low)} to {seconds(epoch.high)}",
            f"{speed.median:,.0f}",
            *tokens_cells(group, groups),
            percent_of(speed.between, speed.median),
            percent_of(speed.within, speed.median),
            with_spread(group.values("result", "test_accuracy"), 100, "{:.2f}%"),
            with_spread(group.values("result", "train_loss"), 1, "{:.4f}"),
        ]
        if with_target:
            cells.append("" if time is None else _time_to_accuracy(time, len(group.runs)))
        rows.append(row(*cells, "; ".join(remarks_of(group))))
    heads = columns(
        "group", "repeats", "quality", f"{lap_word(groups)} time", Column("min to max", is_optional=True), "samples/s",
        *tokens_head(groups), "between", Column("within", is_optional=True), "test accuracy",
        Column("training loss", is_optional=True), *(["time to accuracy"] if with_target else []), REMARKS,
    )  # fmt: skip
    lap = lap_word(groups)
    with_between, with_within = any_trained_by_laptime(groups), any_trained_by_laptime(groups)
    if not any_trained_by_laptime(groups):  # what the columns that are left need
        with_between = any(group.samples_per_s.between is not None for group in groups)
        with_within = any(group.samples_per_s.within is not None for group in groups)
    note = (
        f"Medians of the repeats' medians over counted {lap}s. {_spread_note(with_between, with_within, lap)}"
        "samples/s: of the median time. Accuracy and loss: median ± standard deviation over the repeats."
        + (
            f" Time to an accuracy of the validation set: of training alone, warm-up included, in whole {lap}s."
            if with_target
            else ""
        )
    )
    return Table("Groups", heads, tuple(rows), (note,))


def _spread_note(with_between: bool, with_within: bool, lap: str) -> str:
    if with_between and with_within:
        return (
            f"between, within: standard deviation between repeats, and of the {lap}s of a repeat, as a share of the "
            "median. "
        )
    if with_between:
        return "between: standard deviation between repeats, as a share of the median. "
    return f"within: standard deviation of the {lap}s of a repeat, as a share of the median. " if with_within else ""


def _time_to_accuracy(time: Reached, num_repeats: int) -> str:
    which = f"to {time.target_accuracy:.1%}:"
    if time.time_to_accuracy_s is None:
        return f"{which} never"
    return f"{which} {seconds(time.time_to_accuracy_s)} ({time.num_reached} of {num_repeats})"


def _steps(groups: Sequence[Group]) -> list[Table]:
    """Where a step's time goes and how near its limit a run came, where it was measured."""
    measured = [group for group in groups if group.median("breakdown", "step_s")]
    if not measured:
        return []
    rows = []
    for group in measured:
        step_s = group.median("breakdown", "step_s") or math.nan
        shares = [group.median("breakdown", f"{part}_s") for part in PHASES]
        fraction = group.median("peak", "mfu")
        cells = [
            group.label,
            f"{1e3 * step_s:.2f}",
            *("" if each is None else f"{each / step_s:.0%}" for each in shares),
        ]
        cells += [milliseconds(group.median("breakdown", f"step_p{q}_s")) for q in (50, 95, 99)]
        excess = group.median("breakdown", "instrument_s")
        cells += ["" if excess is None else f"{excess / (step_s - excess):+.0%}"]
        cells += ["" if fraction is None else percent(fraction)]
        rows.append(row(*cells, _limit(group)))
    short = {"communication": "comm", "host_to_device": "copy"}
    parts = [Column(short.get(part, part), is_optional=part == "rest") for part in PHASES]
    laps = f"{lap_word(groups)}s"
    optional = [Column(head, is_optional=True) for head in ("p50", "p95", "p99", f"over {laps}")]
    limit = Column("limit", is_sentence=True)
    heads = columns("group", "ms per step", *parts, *optional, "of the peak", limit)
    table = Table("Where a step's time goes", heads, tuple(rows))
    there = {
        column.head for column in (table if any_trained_by_laptime(measured) else table.without_empty_columns()).columns
    }
    quantiles = ", p50, p95 and p99 are milliseconds" if "p50" in there else ""
    explained = {
        f"over {laps}": f"what a step takes longer than in the {laps}, by the clock's cost or by noise.",
        "comm": "waiting for gradients of other ranks.",
        "of the peak": "floating-point operations a second against the fastest matrix product on the same device, "
        "precision, threads and ranks.",
    }
    notes = [f"From {source_of_steps(measured)}. Medians of the repeats; shares of the step{quantiles}."]
    notes += [f"{head}: {words}" for head, words in explained.items() if head in there]
    return [replace(table, notes=(" ".join(notes),))]


def _limit(group: Group) -> str:
    """The words of the repeat whose share of the peak is the middle one."""
    known = [run.record.peak for run in group.runs if run.record.peak.verdict]
    known.sort(key=lambda peak: peak.mfu or 0.0)
    if not known:
        return ""
    of_one = " (of the middle repeat)" if len(group.runs) > 1 else ""
    peak = known[len(known) // 2]
    words = peak.verdict or ""
    # Records have whole percents, of which the small ones would be others than in the row.
    achieved, computed = peak.mfu, peak.compute_mfu
    if achieved is not None and words.startswith(rounded := f"{achieved:.0%} of the fastest"):
        words = f"{percent(achieved)} of the fastest{words.removeprefix(rounded)}"
    if computed is not None:
        words = words.replace(f", at {computed:.0%} of that rate", f", at {percent(computed)} of that rate")
    return f"{escape_control_chars(words)}{of_one}"


def _resources(groups: Sequence[Group]) -> list[Table]:
    """Memory, CPU, energy, and what the framework costs."""
    heads = columns(
        "group", "peak memory", "peak device memory", "CPU", f"J per {lap_word(groups)}", "J per 1,000 samples",
        "over a bare loop",
    )  # fmt: skip
    rows = []
    for group in groups:
        overhead = group.median("bare_loop", "overhead")
        per_step = group.median("bare_loop", "overhead_s_per_step")
        cpu = group.median("resources", "cpu_percent")
        rows.append(
            row(
                group.label,
                gigabytes(group.median("resources", "peak_rss_bytes")),
                gigabytes(group.median("resources", "peak_device_memory_bytes")),
                "" if cpu is None else f"{cpu:.0f}%",
                three_digits(group.median("resources", "energy_joules")),
                three_digits(group.median("resources", "energy_joules_per_1000_samples")),
                "" if overhead is None else f"{overhead:+.1%}, {1e3 * (per_step or 0):+.3f} ms a step",
            )
        )
    if not any(cell.text for each in rows for cell in each.cells[1:]):
        return []
    notes = ["Of all ranks together, medians of the repeats; 100% is one core."]
    missing = {why for group in groups for run in group.runs if (why := run.record.resources.energy_missing)}
    if missing:
        notes.append(f"Energy was not measured: {escape_control_chars('; '.join(sorted(missing)))}.")
    if any(group.values("bare_loop", "overhead") for group in groups):
        notes.append("over a bare loop: what Lightning and Laptime cost, epochs of both by turns (measure.bare_loop).")
    return [Table("Resources", heads, tuple(rows), tuple(notes))]


def _comparison(comparison: Comparison, groups: Sequence[Group]) -> Table:
    rows = []
    for each in comparison.rows:
        group = each.group
        total = group.median("timing", "total_train_s")
        rows.append(
            row(
                each.value,
                str(len(group.runs)),
                group.quality,
                seconds(group.epoch_time_s.median),
                "" if total is None else seconds(total),
                f"{group.samples_per_s.median:,.0f}",
                *tokens_cells(group, groups),
                with_interval(each.speedup, each.interval),
                difference_words(each.difference),
                with_spread(group.values("result", "test_accuracy"), 100, "{:.2f}%"),
                results_cell(each.agreement),
                "; ".join(remarks_of(group, each.mismatches)),
            )
        )
    head = comparison.key.rpartition(".")[2]
    heads = columns(
        head, "repeats", "quality", f"{lap_word(groups)} time", Column("total time", is_optional=True), "samples/s",
        *tokens_head(groups), "speedup", Column("difference", is_sentence=True), "test accuracy", RESULTS, REMARKS,
    )  # fmt: skip
    of = f" ({comparison.common})" if comparison.common else ""
    note = "difference: two-sided Mann-Whitney test of the repeats' throughputs at 5%."
    notes = (note, *interval_note([each.group for each in comparison.rows]))
    return Table(f"By {comparison.key}{of}", heads, tuple(rows), notes)
