"""Makes the tables of a report: groups, scaling, comparisons, searches, steps and resources."""

import math
from collections.abc import Sequence

from laptime.analysis.analyze import Analysis
from laptime.analysis.cells import (
    REMARKS,
    RESULTS,
    ScoreColumn,
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
from laptime.analysis.group import Group, Reached, Target, common_score, lap_word, reached
from laptime.analysis.remarks import remarks_of
from laptime.analysis.scaling_tables import overheads, scaling
from laptime.analysis.search import Search
from laptime.analysis.table import Cell, Column, Table, columns, row
from laptime.analysis.wording import difference_words, source_of_steps
from laptime.record.schema import PHASES
from laptime.record.score import ACCURACY
from laptime.text import escape_control_chars, percent

# Maximum number of trials shown for a search with one objective.
_MAX_TRIALS = 10


def tables(analysis: Analysis) -> list[Table]:
    """Return all tables, without empty tables and empty columns."""
    shown = [_groups(analysis.groups, analysis.target)] if analysis.groups else []
    for family in analysis.families:
        shown += [scaling(family, analysis.project, analysis.groups), *overheads(family)]
    shown += [_comparison(comparison, analysis.groups) for comparison in analysis.comparisons]
    shown[:0] = [_trials(search) for search in analysis.searches]
    shown += _steps(analysis.groups) + _resources(analysis.groups)
    if analysis.skipped:
        rows = tuple(row(escape_control_chars(str(skipped.path)), skipped.reason) for skipped in analysis.skipped)
        shown.append(Table("Skipped runs", columns("run", "reason"), rows))
    return [table.without_empty_columns() for table in shown]


def _trials(search: Search) -> Table:
    """Return the table of the best trials, or of the Pareto front of several objectives."""
    several = len(search.metrics) > 1
    indices = search.front if several else search.ranked[:_MAX_TRIALS]
    rows = []
    for index in indices:
        group, values = search.groups[index], search.values[index]
        rows.append(row(group.label, *(f"{value:.4g}" for value in values), group.quality))
    note = f"The best {len(rows)} of {len(search.groups)} groups, by {search.titles[0]}."
    if several:
        note = (
            f"The front has {len(rows)} of {len(search.groups)} groups. No other group is at least as good in all "
            "metrics and better in one."
        )
    title = "Pareto front" if several else "Best trials"
    return Table(title, columns("group", *search.titles, "quality"), tuple(rows), (note,))


def _groups(groups: Sequence[Group], target: Target | None) -> Table:
    score = ScoreColumn(groups)
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
            percent_of(speed.std_repeats, speed.median),
            percent_of(speed.std_epochs, speed.median),
            score.cell(group),
            with_spread(group.values("result", "train_loss"), 1, "{:.4f}".format),
        ]
        if with_target:
            cells.append("" if time is None else _time_to_score(time, len(group.runs)))
        rows.append(row(*cells, "; ".join(remarks_of(group))))
    lap = lap_word(groups)
    target_name = "accuracy" if common_score(groups) == ACCURACY else "score"
    time_to_score = Column(
        f"time to {target_name}",
        note=f"time to {target_name}: training time, warm-up included, until the validation {target_name} reaches the "
        f"target, in whole {lap}s.",
    )
    heads = columns(
        "group", "repeats", "quality", f"{lap} time", Column("min to max", is_optional=True), "samples/s",
        *tokens_head(groups),
        Column("std (repeats)", note="std (repeats): standard deviation over the repeats, in percent of the median."),
        Column(
            f"std ({lap}s)", is_optional=True,
            note=f"std ({lap}s): standard deviation over the {lap}s of a repeat, in percent of the median.",
        ),
        score.head(),
        Column(
            "training loss", is_optional=True, note="training loss: median ± standard deviation over the repeats.",
        ),
        *([time_to_score] if with_target else []), REMARKS,
    )  # fmt: skip
    note = (
        f"Each value is the median over the repeats; a repeat's value is the median of its counted {lap}s. samples/s "
        "is computed from the median time."
    )
    return Table("Groups", heads, tuple(rows), (note,))


def _time_to_score(time: Reached, num_repeats: int) -> str:
    which = f"to {time.score.target_text(time.target)}:"
    if time.time_s is None:
        return f"{which} never"
    return f"{which} {seconds(time.time_s)} ({time.num_reached} of {num_repeats})"


def _steps(groups: Sequence[Group]) -> list[Table]:
    """Return the table of the phases of a step and the MFU, if they were measured."""
    measured = [group for group in groups if group.median("breakdown", "step_s")]
    if not measured:
        return []
    rows = []
    for group in measured:
        step_s = group.median("breakdown", "step_s") or math.nan
        phases_s = [group.median("breakdown", f"{phase}_s") for phase in PHASES]
        mfu = group.median("peak", "mfu")
        merged = {"backward": " (with optimizer)"} if group.median("breakdown", "optimizer_s") is None else {}
        cells = [group.label, f"{1e3 * step_s:.2f}"]
        for phase, phase_s in zip(PHASES, phases_s, strict=True):
            cells.append("" if phase_s is None else f"{phase_s / step_s:.0%}{merged.get(phase, '')}")
        cells += [milliseconds(group.median("breakdown", f"step_p{q}_s")) for q in (50, 95, 99)]
        instrument_s = group.median("breakdown", "instrument_s")
        cells += ["" if instrument_s is None else f"{instrument_s / (step_s - instrument_s):+.0%}"]
        cells += ["" if mfu is None else percent(mfu)]
        rows.append(row(*cells, _limit(group)))
    laps = f"{lap_word(groups)}s"
    short = {"communication": "comm", "host_to_device": "copy"}
    waiting = {"communication": "comm: waiting for gradients of other ranks."}
    phases = [Column(short.get(phase, phase), phase == "rest", note=waiting.get(phase, "")) for phase in PHASES]
    percentiles = [Column(f"p{q}", is_optional=True, note=f"p{q} in ms.") for q in (50, 95, 99)]
    cost = f"vs {laps}: how much longer a step takes in this table than in the {laps}, because of the clocks or noise."
    mfu_note = (
        "MFU: achieved FLOP/s over the peak, which is the fastest matrix product measured here with the same device, "
        "precision, threads and ranks."
    )
    heads = columns(
        "group", "ms per step", *phases, *percentiles, Column(f"vs {laps}", is_optional=True, note=cost),
        Column("MFU", note=mfu_note), Column("limit", is_sentence=True),
    )  # fmt: skip
    note = (
        f"The phases are from {source_of_steps(measured)}. Each value is the median over the repeats. Phases are in "
        "percent of the step."
    )
    return [Table("Phases of a step", heads, tuple(rows), (note,))]


def _limit(group: Group) -> str:
    """Return the recorded verdict of the repeat with the median MFU."""
    peaks = [run.record.peak for run in group.runs if run.record.peak.verdict]
    peaks.sort(key=lambda peak: peak.mfu or 0.0)
    if not peaks:
        return ""
    suffix = " (of the median repeat)" if len(group.runs) > 1 else ""
    peak = peaks[len(peaks) // 2]
    words = peak.verdict or ""
    # Older records contain whole percents. Small ones would contradict the MFU column, so they get its digits.
    achieved, computed = peak.mfu, peak.compute_mfu
    if achieved is not None and words.startswith(rounded := f"{achieved:.0%} of the fastest"):
        words = f"{percent(achieved)} of the fastest{words.removeprefix(rounded)}"
    if computed is not None:
        words = words.replace(f", at {computed:.0%} of that rate", f", at {percent(computed)} of that rate")
    return f"{escape_control_chars(words)}{suffix}"


def _resources(groups: Sequence[Group]) -> list[Table]:
    """Return the table of memory, CPU, energy, and the overhead over a bare PyTorch loop."""
    heads = columns(
        "group", "peak memory", "peak device memory", "CPU", f"J per {lap_word(groups)}", "J per 1,000 samples",
        "vs bare loop",
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
                "" if overhead is None else f"{overhead:+.1%}, {1e3 * (per_step or 0):+.3f} ms per step",
            )
        )
    if not any(cell.text for cells in rows for cell in cells.cells[1:]):
        return []
    notes = ["Totals of all ranks, medians over the repeats. CPU: 100% is one core."]
    missing = {why for group in groups for run in group.runs if (why := run.record.resources.energy_missing)}
    if missing:
        notes.append(f"Energy was not measured: {escape_control_chars('; '.join(sorted(missing)))}.")
    if any(group.values("bare_loop", "overhead") for group in groups):
        notes.append(
            "vs bare loop: overhead of Lightning and Laptime over a plain PyTorch loop, in alternating epochs "
            "(measure.bare_loop)."
        )
    return [Table("Resources", heads, tuple(rows), tuple(notes))]


def _comparison(comparison: Comparison, groups: Sequence[Group]) -> Table:
    score = ScoreColumn([compared.group for compared in comparison.rows])
    rows = []
    for compared in comparison.rows:
        group = compared.group
        total = group.median("timing", "total_train_s")
        rows.append(
            row(
                compared.value,
                str(len(group.runs)),
                group.quality,
                seconds(group.epoch_time_s.median),
                "" if total is None else seconds(total),
                f"{group.samples_per_s.median:,.0f}",
                *tokens_cells(group, groups),
                with_interval(compared.speedup, compared.interval),
                difference_words(compared.difference),
                score.cell(group),
                results_cell(compared.agreement),
                "; ".join(remarks_of(group, compared.mismatches)),
            )
        )
    head = comparison.key.rpartition(".")[2]
    heads = columns(
        head, "repeats", "quality", f"{lap_word(groups)} time", Column("total time", is_optional=True), "samples/s",
        *tokens_head(groups), "speedup", Column("difference", is_sentence=True), score.head(with_note=False),
        RESULTS, REMARKS,
    )  # fmt: skip
    common = f" ({comparison.common})" if comparison.common else ""
    note = "difference: two-sided Mann-Whitney test of the repeats' throughputs at 5%."
    notes = (note, *interval_note([compared.group for compared in comparison.rows]))
    return Table(f"By {comparison.key}{common}", heads, tuple(rows), notes)
