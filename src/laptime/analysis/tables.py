"""The tables that people read, as plain text cells: the terminal, Markdown and HTML show the same ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from laptime.analysis.analyse import Analysis
from laptime.analysis.compare import Comparison
from laptime.analysis.groups import Group, Reached, reached
from laptime.analysis.laws import TITLES, Fit, efficiency, karp_flatt
from laptime.analysis.scaling import Family, projections
from laptime.analysis.search import Search
from laptime.analysis.statistics import HONEST_REPEATS, Interval, median_and_deviation
from laptime.errors import printable
from laptime.record.files import PARTS

# Of a search for one thing so many are shown.
_MOST_TRIALS = 10


@dataclass(frozen=True)
class Table:
    """A table for people.

    Attributes:
        title: what it shows.
        columns: heads.
        rows: of text cells.
        notes: lines below it.
        optional: heads of columns that a narrow terminal leaves out.
        sentences: heads of columns that a terminal shows as lines below the table.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ("results", "remarks")


def tables(analysis: Analysis) -> list[Table]:
    """All tables; those, and columns of those, that would be empty are left out."""
    found = [_groups(analysis.groups, analysis.target_accuracy)] if analysis.groups else []
    for family in analysis.families:
        found += [_scaling(family, analysis.project), _losses(family)]
    found += [_comparison(comparison) for comparison in analysis.comparisons]
    found[:0] = [_trials(search) for search in analysis.searches]
    found += _steps(analysis.groups) + _resources(analysis.groups)
    if analysis.skipped:
        rows = tuple((printable(str(skipped.path)), skipped.reason) for skipped in analysis.skipped)
        found.append(Table("Not counted", ("run", "reason"), rows))
    return [_without_empty_columns(table) for table in found]


def _without_empty_columns(table: Table) -> Table:
    """What no row has is in no table: the spread between repeats, where there is one of each."""
    places = [place for place in range(len(table.columns)) if any(row[place] for row in table.rows)]
    return replace(
        table,
        columns=tuple(table.columns[place] for place in places),
        rows=tuple(tuple(row[place] for place in places) for row in table.rows),
    )


def _trials(search: Search) -> Table:
    """The best ones, or those that no other beats."""
    several = len(search.metrics) > 1
    places = search.front if several else search.ranked[:_MOST_TRIALS]
    rows = [
        (search.groups[place].label, *(f"{value:.4g}" for value in search.values[place]), search.groups[place].quality)
        for place in places
    ]
    note = f"The best {len(rows)} of {len(search.groups)} groups, by {search.metrics[0]}."
    if several:
        note = (
            f"The {len(rows)} of {len(search.groups)} groups that no other beats: none is at least as good in all of "
            "these and better in one."
        )
    title = "Pareto front" if several else "Best trials"
    return Table(title, ("group", *search.metrics, "quality"), tuple(rows), (note,))


def _groups(groups: Sequence[Group], target: float | None) -> Table:
    times = [reached(group, target) for group in groups]
    with_target = any(time is not None for time in times)
    rows = []
    for group, time in zip(groups, times, strict=True):
        epoch, speed = group.epoch_time_s, group.samples_per_s
        row = [
            group.label,
            str(len(group.runs)),
            group.quality,
            _seconds(epoch.median),
            f"{_seconds(epoch.low)} to {_seconds(epoch.high)}",
            f"{speed.median:,.0f}",
            _percent_of(speed.between, speed.median),
            _percent_of(speed.within, speed.median),
            _with_spread(group.values("result", "test_accuracy"), 100, "{:.2f}%"),
            _with_spread(group.values("result", "train_loss"), 1, "{:.4f}"),
        ]
        if with_target:
            row.append("" if time is None else _time_to_accuracy(time, len(group.runs)))
        rows.append((*row, "; ".join(group.remarks)))
    columns = ["group", "repeats", "quality", "epoch time", "min to max", "samples/s", "between", "within"]
    columns += ["test accuracy", "training loss", *(["time to accuracy"] if with_target else []), "remarks"]
    note = (
        "Medians of the repeats' medians over counted epochs. between, within: standard deviation between repeats, "
        "and of the epochs of a repeat, as a share of the median. samples/s: of the median time. Accuracy and loss: "
        "median ± standard deviation over the repeats."
        + (
            " Time to an accuracy of the validation set: of training alone, warm-up included, in whole epochs."
            if with_target
            else ""
        )
    )
    return Table("Groups", tuple(columns), tuple(rows), (note,), ("min to max", "within", "training loss"))


def _time_to_accuracy(time: Reached, num_repeats: int) -> str:
    which = f"to {time.target_accuracy:.1%}:"
    if time.time_to_accuracy_s is None:
        return f"{which} never"
    return f"{which} {_seconds(time.time_to_accuracy_s)} ({time.num_reached} of {num_repeats})"


def _scaling(family: Family, project: Sequence[int]) -> Table:
    rows = []
    with_ddp = family.one_rank_ddp is not None
    for point in family.points:
        p, s = point.world_size, point.speedup
        row = [
            str(p),
            str(len(point.group.runs)),
            point.group.quality,
            f"{point.group.samples_per_s.median:,.0f}",
            f"{p}.00",
        ]
        row.append(_with_interval(s, point.speedup_interval))
        row.append("" if s is None else _with_interval(efficiency(s, p), point.speedup_interval, 100 / p, "%"))
        serial = None if s is None else karp_flatt(s, p)
        row.append("" if serial is None else f"{serial:.3f}")
        if with_ddp:
            row.append(_with_interval(point.speedup_over_ddp, point.ddp_interval))
        rows.append((*row, point.agrees, "; ".join(point.remarks)))
    for projected in projections(family, project):
        p, speedup, interval = projected.world_size, projected.speedup, projected.interval
        row = [f"{p} (projected)", "", "", "", f"{p}.00", _with_interval(speedup, interval)]
        row += [_with_interval(speedup / p, interval, 100 / p, "%"), "", *([""] if with_ddp else [])]
        rows.append((*row, "", "projected by the fit, not measured"))
    columns = ["ranks", "repeats", "quality", "samples/s", "expected", "speedup", "efficiency", "serial fraction"]
    columns += [*(["speedup over one-rank DDP"] if with_ddp else []), "results", "remarks"]
    kind = "weak scaling: the batch of each rank is fixed"
    if family.kind == "strong":
        kind = "strong scaling: the global batch is fixed"
    title = f"Scaling{' of ' + family.name if family.name else ''} ({kind})"
    return Table(
        title,
        tuple(columns),
        tuple(rows),
        (*_interval_note([point.group for point in family.points]), *scaling_notes(family)),
        ("serial fraction",),
    )


def scaling_notes(family: Family) -> list[str]:
    """What the fits say, or why there are none."""
    if family.missing is not None:
        return [family.missing]
    num_sizes = len(set(family.world_sizes))
    if not family.fits:
        return [f"No fit: {num_sizes} numbers of ranks were measured, and a fit needs three.", _SERIAL]
    notes = [_fit_words(family.fits[name]) for name in ("amdahl", "usl") if name in family.fits]
    if any(point.group.first["strategy"]["oversubscribed"] for point in family.points):
        notes.append("Among the fitted are ranks with more threads than cores: more cores would scale otherwise.")
    usl = family.fits.get("usl")
    if usl is None:
        return [*notes, _SERIAL]
    if not usl.describes:
        notes.append("Nothing is projected from a law that does not describe what was measured.")
    elif usl.intervals is None:
        notes.append("How far off the law may be can't be told: there are no more speedups than parameters.")
    elif usl.best_world_size is not None:
        best, interval = usl.best_world_size
        notes.append(f"Fastest, by that law, with {best:.1f} ranks ({interval.low:.1f} to {interval.high:.1f}).")
    else:
        notes.append(
            "The best number of ranks is withheld: its interval reaches beyond twice the largest number that was "
            "measured, of which these data say nothing."
        )
    return [*notes, _SERIAL]


_SERIAL = (
    "Serial fraction (Karp and Flatt): the share of the work that is as if one rank did it; above 1, slower than one."
)


def _fit_words(fit: Fit) -> str:
    parts = []
    for name, value in fit.parameters.items():
        interval = fit.intervals[name] if fit.intervals else None
        reach = f" ({interval.low:.3f} to {interval.high:.3f})" if interval else " (no interval: too few data)"
        parts.append(f"{name} {value:.3f}{reach}")
    quality = "" if fit.r_squared is None else f", R² {fit.r_squared:.3f}"
    doubt = "" if fit.describes else ": does not describe these speedups"
    return f"{TITLES[fit.name]}: {', '.join(parts)}{quality}, off by {fit.deviation:.0%}{doubt}."


_LOSSES = ("contention", "oversubscription", "communication", "straggling", "rest")


def _losses(family: Family) -> Table:
    rows = []
    for name in ("ideal", *_LOSSES, "step"):
        cells = [name]
        for point in family.points:
            value, step = point.losses[name], point.losses["step"]
            share = (
                f" ({value / step:.0%})" if value is not None and step and point.group is not family.baseline else ""
            )
            cells.append(f"{_milliseconds(value)}{share}")
        rows.append(tuple(cells))
    columns = ("ms per step", *(f"{size} rank{'s' if size > 1 else ''}" for size in family.world_sizes))
    note = (
        "In brackets as a share of the step, to which ideal and the causes add up. Causes are measured in "
        "separate steps (measure.breakdown), rest is what they don't explain of the epochs' own steps."
    )
    title = f"Where the loss went{': ' + family.name if family.name else ''}"
    return Table(title, columns, tuple(rows), (note,))


def _steps(groups: Sequence[Group]) -> list[Table]:
    """Where a step's time goes and how near its limit a run came, where it was measured."""
    measured = [group for group in groups if group.median("breakdown", "step_s")]
    if not measured:
        return []
    rows = []
    for group in measured:
        step_s = group.median("breakdown", "step_s") or math.nan
        shares = [group.median("breakdown", f"{part}_s") for part in PARTS]
        fraction = group.median("peak", "achieved_fraction")
        row = [group.label, f"{1e3 * step_s:.2f}", *("" if each is None else f"{each / step_s:.0%}" for each in shares)]
        row += [_milliseconds(group.median("breakdown", f"step_p{q}_s"), "") for q in (50, 95, 99)]
        excess = group.median("breakdown", "instrument_s")
        row += ["" if excess is None else f"{excess / (step_s - excess):+.0%}"]
        row += ["" if fraction is None else f"{fraction:.0%}"]
        rows.append((*row, _verdict(group)))
    short = {"communication": "comm", "host_to_device": "copy"}
    heads = [short.get(part, part) for part in PARTS]
    columns = ("group", "ms per step", *heads, "p50", "p95", "p99", "over epochs", "of the peak", "limit")
    note = (
        "From separate steps after the timed epochs (measure.breakdown), medians of the repeats; shares of the step, "
        "p50, p95 and p99 are milliseconds. over epochs: what a step takes longer than in the epochs, by the clock's "
        "cost or by noise. comm: waiting for gradients of other ranks. "
        "of the peak: floating-point operations a second against the fastest matrix product on the same device, "
        "precision, threads and ranks."
    )
    return [
        Table(
            "Where a step's time goes",
            columns,
            tuple(rows),
            (note,),
            ("rest", "p50", "p95", "p99", "over epochs"),
            ("limit",),
        )
    ]


def _verdict(group: Group) -> str:
    """The words of the repeat whose share of the peak is the middle one."""
    known = [run.record["peak"] for run in group.runs if run.record["peak"].get("verdict")]
    known.sort(key=lambda peak: peak.get("achieved_fraction") or 0.0)
    if not known:
        return ""
    of_one = " (of the middle repeat)" if len(group.runs) > 1 else ""
    return f"{printable(known[len(known) // 2]['verdict'])}{of_one}"


def _resources(groups: Sequence[Group]) -> list[Table]:
    """Memory, CPU, energy, and what the framework costs."""
    heads = ("peak memory", "peak device memory", "CPU", "J per epoch", "J per 1,000 samples", "over a bare loop")
    rows = []
    for group in groups:
        overhead = group.median("bare_loop", "overhead")
        per_step = group.median("bare_loop", "overhead_s_per_step")
        cpu = group.median("resources", "cpu_percent")
        rows.append(
            (
                group.label,
                _gigabytes(group.median("resources", "peak_rss_bytes")),
                _gigabytes(group.median("resources", "peak_device_memory_bytes")),
                "" if cpu is None else f"{cpu:.0f}%",
                _three_digits(group.median("resources", "energy_joules")),
                _three_digits(group.median("resources", "energy_joules_per_1000_samples")),
                "" if overhead is None else f"{overhead:+.1%}, {1e3 * (per_step or 0):+.3f} ms a step",
            )
        )
    if not any(any(row[1:]) for row in rows):
        return []
    notes = ["Of all ranks together, medians of the repeats; 100% is one core."]
    missing = {run.record["resources"].get("energy_missing") for group in groups for run in group.runs} - {None}
    if missing:
        notes.append(f"Energy was not measured: {printable('; '.join(sorted(missing)))}.")
    if any(group.values("bare_loop", "overhead") for group in groups):
        notes.append("over a bare loop: what Lightning and Laptime cost, epochs of both by turns (measure.bare_loop).")
    return [Table("Resources", ("group", *heads), tuple(rows), tuple(notes))]


def _comparison(comparison: Comparison) -> Table:
    rows = []
    for row in comparison.rows:
        group = row.group
        total = group.median("timing", "total_train_s")
        rows.append(
            (
                row.value,
                str(len(group.runs)),
                group.quality,
                _seconds(group.epoch_time_s.median),
                "" if total is None else _seconds(total),
                f"{group.samples_per_s.median:,.0f}",
                _with_interval(row.speedup, row.interval),
                row.verdict,
                _with_spread(group.values("result", "test_accuracy"), 100, "{:.2f}%"),
                row.agrees,
                "; ".join(row.remarks),
            )
        )
    head = comparison.key.rpartition(".")[2]
    columns = (head, "repeats", "quality", "epoch time", "total time", "samples/s", "speedup", "difference",
               "test accuracy", "results", "remarks")  # fmt: skip
    of = f" ({comparison.common})" if comparison.common else ""
    note = "difference: two-sided Mann-Whitney test of the repeats' throughputs at 5%."
    optional, sentences = ("total time",), ("difference", "results", "remarks")
    notes = (note, *_interval_note([row.group for row in comparison.rows]))
    return Table(f"By {comparison.key}{of}", columns, tuple(rows), notes, optional, sentences)


def _interval_note(groups: Sequence[Group]) -> list[str]:
    """A warning where there are intervals of too few repeats."""
    fewest = min(len(group.runs) for group in groups)
    if not 1 < fewest < HONEST_REPEATS:
        return []
    return [
        f"With {fewest} repeats the intervals are too narrow: they cover the truth in fewer than 95 of 100 cases. "
        f"{HONEST_REPEATS} would do."
    ]


def _with_interval(value: float | None, interval: Interval | None, scale: float = 1.0, unit: str = "") -> str:
    if value is None:
        return "no baseline"
    shown = value * (100 if unit == "%" else 1)
    digits = 1 if unit == "%" else 2
    if interval is None:
        return f"{shown:.{digits}f}{unit}"
    return f"{shown:.{digits}f}{unit} ({interval.low * scale:.{digits}f} to {interval.high * scale:.{digits}f})"


def _with_spread(values: Sequence[float], scale: float, form: str) -> str:
    finite = [value * scale for value in values if math.isfinite(value)]
    if not finite:
        return "not measured"
    median, deviation = median_and_deviation(finite)
    return form.format(median) if deviation is None else f"{form.format(median)} ± {form.format(deviation)}"


def _percent_of(value: float | None, whole: float) -> str:
    return "" if value is None else f"{value / whole:.1%}"


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value < 100 else f"{value:,.0f} s"


def _milliseconds(value: float | None, missing: str = "not measured") -> str:
    return missing if value is None else f"{1e3 * value:.2f}"


def _gigabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e9:.2f} GB"


def _three_digits(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
