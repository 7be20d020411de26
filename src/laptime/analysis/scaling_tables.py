"""Makes the tables of a scaling family: speedups with their fits, and overheads."""

from collections.abc import Sequence
from dataclasses import fields

from laptime.analysis.cells import (
    NOT_MEASURED,
    REMARKS,
    RESULTS,
    interval_note,
    milliseconds,
    results_cell,
    tokens_cells,
    tokens_head,
    with_interval,
)
from laptime.analysis.group import Group
from laptime.analysis.laws import TITLES, Fit, efficiency, karp_flatt
from laptime.analysis.overheads import Overheads
from laptime.analysis.remarks import remarks_of
from laptime.analysis.scaling import Family, projections
from laptime.analysis.table import Cell, Column, Table, columns, row
from laptime.analysis.wording import missing_baseline_words
from laptime.text import counted


def scaling(family: Family, project: Sequence[int], groups: Sequence[Group]) -> Table:
    """Return the table of speedup and efficiency by number of ranks.

    Args:
        project: numbers of ranks to project the speedup to.
        groups: all groups of the report.
    """
    rows = []
    tokens = tokens_head(groups)
    with_ddp = family.one_rank_ddp is not None
    for point in family.points:
        p, s = point.world_size, point.speedup
        cells = [
            str(p),
            str(len(point.group.runs)),
            point.group.quality,
            f"{point.group.samples_per_s.median:,.0f}",
            *tokens_cells(point.group, groups),
            f"{p}.00",
        ]
        cells.append(with_interval(s, point.speedup_interval))
        cells.append("" if s is None else with_interval(efficiency(s, p), point.speedup_interval, 100 / p, "%"))
        serial = None if s is None else karp_flatt(s, p)
        cells.append("" if serial is None else f"{serial:.3f}")
        if with_ddp:
            cells.append(with_interval(point.speedup_over_ddp, point.ddp_interval))
        remarks = "; ".join(remarks_of(point.group, point.mismatches))
        rows.append(row(*cells, results_cell(point.agreement), remarks))
    for projected in projections(family, project):
        p, speedup, interval = projected.world_size, projected.speedup, projected.interval
        cells = [f"{p} (projected)", "", "", "", *("" for _ in tokens), f"{p}.00", with_interval(speedup, interval)]
        cells += [with_interval(speedup / p, interval, 100 / p, "%"), "", *([""] if with_ddp else [])]
        rows.append(row(*cells, "", "projected by the fit, not measured", is_projected=True))
    over_ddp = ["speedup over one-rank DDP"] if with_ddp else []
    heads = columns(
        "ranks", "repeats", "quality", "samples/s", *tokens, "expected", "speedup", "efficiency",
        Column("serial fraction", is_optional=True, note=_SERIAL), *over_ddp, RESULTS, REMARKS,
    )  # fmt: skip
    kind = "weak scaling: fixed batch size per rank"
    if family.kind == "strong":
        kind = "strong scaling: fixed global batch size"
    title = f"Scaling{' of ' + family.name if family.name else ''} ({kind})"
    notes = (*interval_note([point.group for point in family.points]), *scaling_notes(family))
    return Table(title, heads, tuple(rows), notes)


def scaling_notes(family: Family) -> list[str]:
    """Return notes about the fitted laws, or the reason why there is no fit."""
    if family.baseline is None:
        return [missing_baseline_words(family)]
    num_sizes = len(set(family.world_sizes))
    if not family.fits:
        return [f"No fit: it needs at least three different numbers of ranks. Measured: {num_sizes}."]
    notes = [_fit_words(family.fits[name]) for name in ("amdahl", "usl") if name in family.fits]
    if any(point.group.first.strategy.oversubscribed for point in family.points):
        notes.append(
            "The fit includes oversubscribed runs (more threads than cores). With more cores, scaling would differ."
        )
    usl = family.fits.get("usl")
    if usl is None:
        return notes
    if not usl.is_good_fit:
        notes.append("No projection: the universal scalability law does not fit the measured speedups.")
    elif usl.intervals is None:
        notes.append("No interval for the universal scalability law: it needs more speedups than parameters.")
    elif usl.best_world_size is not None:
        best, interval = usl.best_world_size
        notes.append(
            f"By the universal scalability law, training is fastest with {best:.1f} ranks "
            f"({interval.low:.1f} to {interval.high:.1f})."
        )
    else:
        notes.append(
            "The best number of ranks is not reported: its interval reaches beyond twice the largest measured number."
        )
    return notes


_SERIAL = (
    "serial fraction (Karp and Flatt): the fraction of the work that behaves as if it were serial. Above 1: slower "
    "than one rank."
)


def _fit_words(fit: Fit) -> str:
    parts = []
    for name, value in fit.parameters.items():
        interval = fit.intervals[name] if fit.intervals else None
        reach = f" ({interval.low:.3f} to {interval.high:.3f})" if interval else " (no interval: too few data)"
        parts.append(f"{name} {value:.3f}{reach}")
    quality = "" if fit.r_squared is None else f", R² {fit.r_squared:.3f}"
    doubt = "" if fit.is_good_fit else ": does not fit these speedups"
    return f"{TITLES[fit.name]}: {', '.join(parts)}{quality}, RMS error {fit.deviation:.0%}{doubt}."


def overheads(family: Family) -> list[Table]:
    """Return the table of a family's overheads.

    For trainings that Laptime only timed, unmeasured causes are left out, and there is no table if only the step is
    known.
    """
    is_laptime_training = all(point.group.first.record.is_laptime_training for point in family.points)
    names = [field.name for field in fields(Overheads)]
    if not is_laptime_training:
        names = [name for name in names if _is_measured(name, family)]
        if not set(names) - {"step"}:
            return []
    rows = []
    for name in names:
        cells: list[str | Cell] = [name.replace("_", " ")]
        for point in family.points:
            value, step = getattr(point.overheads, name), point.overheads.step
            if value is None:
                cells.append(NOT_MEASURED)
                continue
            percentage = f" ({value / step:.0%})" if step and point.group is not family.baseline else ""
            cells.append(f"{milliseconds(value)}{percentage}")
        rows.append(row(*cells))
    heads = columns("ms per step", *(counted(size, "rank") for size in family.world_sizes))
    note = "In parentheses: percentage of the step"
    if is_laptime_training:
        note += (
            ", which is the sum of the rows above it. The causes are measured in separate steps (measure.breakdown). "
            "rest: what they leave unexplained."
        )
    elif "communication" in names:
        note += (
            ". communication: waiting for gradients of other ranks, stragglers included, in steps of the warm-up lap. "
            "The other causes are only measured in trainings that Laptime runs."
        )
    else:
        note += ". The causes are only measured in trainings that Laptime runs."
    title = f"Where the time goes{': ' + family.name if family.name else ''}"
    return [Table(title, heads, tuple(rows), (note,))]


def _is_measured(name: str, family: Family) -> bool:
    """Whether a field of Overheads was measured with more than one rank. The baseline has no overheads."""
    points = [point for point in family.points if point.group is not family.baseline]
    return any(getattr(point.overheads, name) is not None for point in points)
