"""Draws plots as PNG images in memory, with color-blind safe colors, units on the axes, and intervals."""

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from laptime.analysis.analyze import Analysis
from laptime.analysis.group import Group, all_scores, lap_word
from laptime.analysis.labels import shorter_labels
from laptime.analysis.laws import TITLES
from laptime.analysis.scaling import Family
from laptime.analysis.search import Search
from laptime.record.schema import PHASES
from laptime.record.score import ACCURACY

# Okabe and Ito, Color Universal Design (2008), without yellow, which is hard to see on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = "osD^vP*"
_CAUSES = {
    "contention": "#E69F00",
    "oversubscription": "#CC79A7",
    "communication": "#D55E00",
    "straggler_delay": "#56B4E9",
    "rest": "#999999",
}
_PHASE_COLORS = ("#F0E442", "#E69F00", "#0072B2", "#56B4E9", "#D55E00", "#009E73", "#999999")
# With more groups or families a plot is unreadable.
MAX_GROUPS, MAX_FAMILIES = 7, 6


@matplotlib.rc_context({"text.parse_math": False})  # no math mode for dollars in labels
def plots(analysis: Analysis) -> dict[str, bytes]:
    """Return PNG images by file name without suffix. Plots without data are omitted."""
    families = [family for family in analysis.families if family.baseline is not None][:MAX_FAMILIES]
    groups = _with_short_labels(analysis.groups[:MAX_GROUPS])
    images: dict[str, bytes] = {}
    if families:
        images["speedup"] = _png(lambda axes: _speedup(axes, families, analysis.project))
        images["efficiency"] = _png(lambda axes: _efficiency(axes, families))
        for number, family in enumerate(families):
            if any(point.overheads.ideal for point in family.points):
                name = "overheads" if len(families) == 1 else f"overheads_{number + 1}"
                images[name] = _png(lambda axes, family=family: _overheads(axes, family))  # type: ignore[misc]
    fronts = [search for search in analysis.searches if len(search.metrics) > 1]
    for number, search in enumerate(fronts):
        name = "pareto" if len(fronts) == 1 else f"pareto_{number + 1}"
        images[name] = _png(lambda axes, search=search: _front(axes, search))  # type: ignore[misc]
    if groups:
        images["throughput"] = _png(lambda axes: _throughput(axes, groups))
        if any(group.median("breakdown", "step_s") for group in groups):
            images["steps"] = _png(lambda axes: _steps(axes, groups))
        images["epoch_times"] = _png(lambda axes: _epoch_times(axes, groups))
        images["loss"] = _curves(groups, "loss", "loss", "loss")
        images |= _score_curves(groups)
        images["resources"] = _resources(groups)
    return images


def _front(axes: Axes, search: Search) -> None:
    """Draw all groups by the first two objectives, and the Pareto front as a line."""
    x, y = ([values[index] for values in search.values] for index in (1, 0))
    axes.scatter(x, y, color="#999999", label="other groups")
    front = sorted(search.front, key=lambda index: x[index])
    axes.plot([x[i] for i in front], [y[i] for i in front], "o-", color=COLORS[0], label="Pareto front")
    axes.set_xlabel(search.titles[1])
    axes.set_ylabel(search.titles[0])
    _legend(axes)


def _with_short_labels(groups: Sequence[Group]) -> list[Group]:
    """Return the groups with labels that lack the parts that all of them have in common."""
    labels = shorter_labels([group.label for group in groups])
    return [replace(group, label=label) for group, label in zip(groups, labels, strict=True)]


def _speedup(axes: Axes, families: Sequence[Family], project: Sequence[int]) -> None:
    largest = max(size for family in families for size in family.world_sizes)
    for number, family in enumerate(families):
        style = _style(number)
        _with_intervals(axes, family, 1.0, style, _name(family, families))
        fits = {name: law for name, law in family.fits.items() if law.is_good_fit}
        reach = np.linspace(1, max([largest, *project]) if fits else largest, 200)
        for line, (name, law) in zip(("--", ":"), fits.items(), strict=False):
            if name == "usl" and law.draws is not None:
                bounds = [law.interval(size) for size in reach]
                low, high = zip(*((bound.low, bound.high) for bound in bounds if bound is not None), strict=True)
                axes.fill_between(reach, low, high, color=style["color"], alpha=0.12, linewidth=0)
            label = f"{TITLES[name]}, fitted"
            axes.plot(reach, law.predict(reach.tolist()), line, color=style["color"], linewidth=1.2, label=label)
    described = any(law.is_good_fit for family in families for law in family.fits.values())
    furthest = max([largest, *project]) if described else largest
    axes.plot([1, furthest], [1, furthest], color="#999999", linewidth=1, label="ideal")
    top = max([point.speedup or 0 for family in families for point in family.points] + [largest])
    axes.set_ylim(0, 1.25 * top)
    if furthest > largest:
        axes.axvspan(largest, furthest, color="#000000", alpha=0.05, linewidth=0)
        axes.text(largest + 0.02 * furthest, 0.03 * top, "not measured", fontsize=8, color="#555555")
    _by_ranks(axes, families, "speedup over one process", project if furthest > largest else ())


def _efficiency(axes: Axes, families: Sequence[Family]) -> None:
    for number, family in enumerate(families):
        _with_intervals(axes, family, None, _style(number), _name(family, families))
    axes.axhline(100, color="#999999", linewidth=1, label="ideal")
    axes.set_ylim(bottom=0)
    _by_ranks(axes, families, "scaling efficiency (%)")


def _with_intervals(axes: Axes, family: Family, scale: float | None, style: dict[str, str], label: str) -> None:
    """Draw speedups times `scale` with their intervals. If `scale` is None, draw the speedup per rank in percent."""
    points = [point for point in family.points if point.speedup is not None]
    factors = [100 / point.world_size if scale is None else scale for point in points]
    values = [(point.speedup or 0) * factor for point, factor in zip(points, factors, strict=True)]
    below, above = [], []
    for point, factor, value in zip(points, factors, values, strict=True):
        interval = point.speedup_interval
        below.append(max(0.0, value - interval.low * factor) if interval else 0.0)
        above.append(max(0.0, interval.high * factor - value) if interval else 0.0)
    axes.errorbar(
        [point.world_size for point in points], values, yerr=[below, above], capsize=4, label=label,
        color=style["color"], marker=style["marker"],
    )  # fmt: skip


def _by_ranks(axes: Axes, families: Sequence[Family], title: str, project: Sequence[int] = ()) -> None:
    sizes = sorted({*(size for family in families for size in family.world_sizes), *project})
    axes.set_xticks(sizes if len(sizes) < 12 else sizes[:: len(sizes) // 8])
    axes.set_xlabel("ranks")
    axes.set_ylabel(title)
    _legend(axes)


def _overheads(axes: Axes, family: Family) -> None:
    """Draw ideal time and overheads in percent of a step, with one bar per number of ranks."""
    points = [point for point in family.points if point.overheads.ideal and point.overheads.step]
    labels = [str(point.world_size) for point in points]
    bottom = np.array([(point.overheads.ideal or 0) / (point.overheads.step or 1) for point in points])
    axes.bar(labels, 100 * bottom, color="#0072B2", label="ideal step")
    for cause, color in _CAUSES.items():
        fractions = np.array(
            [max(0.0, getattr(point.overheads, cause) or 0.0) / (point.overheads.step or 1) for point in points]
        )
        if fractions.any():
            axes.bar(labels, 100 * fractions, bottom=100 * bottom, color=color, label=cause.replace("_", " "))
            bottom = bottom + fractions
    open_parts = np.clip(1 - bottom, 0, None)
    if (open_parts > 0.005).any():
        axes.bar(labels, 100 * open_parts, bottom=100 * bottom, color="white", edgecolor="#999999", hatch="//",
                 label="not measured")  # fmt: skip
    axes.axhline(100, color="#000000", linewidth=1, label="measured step")
    axes.set_xlabel("ranks")
    axes.set_ylabel("percentage of a step")
    axes.set_title(textwrap.fill(f"Where the time goes{': ' + family.name if family.name else ''}", 80), fontsize=10)
    _legend(axes)


def _throughput(axes: Axes, groups: Sequence[Group]) -> None:
    places = np.arange(len(groups))
    for place, group in zip(places, groups, strict=True):
        axes.barh(place, group.samples_per_s.median, color="#0072B2", alpha=0.8)
        axes.plot(group.throughputs, [place] * len(group.runs), "|", color="#000000", markersize=9)
    axes.set_yticks(places, [_short(group.label) for group in groups])
    axes.invert_yaxis()
    axes.set_xlabel("samples/s (bar: median, lines: repeats)")


def _steps(axes: Axes, groups: Sequence[Group]) -> None:
    """Draw the phases of a step, with one bar per group."""
    groups_with_steps = [group for group in groups if group.median("breakdown", "step_s")]
    places = np.arange(len(groups_with_steps))
    left = np.zeros(len(groups_with_steps))
    for phase, color in zip(PHASES, _PHASE_COLORS, strict=True):
        seconds = np.array([group.median("breakdown", f"{phase}_s") or 0.0 for group in groups_with_steps])
        if seconds.any():
            axes.barh(places, 1e3 * seconds, left=1e3 * left, color=color, label=phase.replace("_", " "))
            left = left + seconds
    axes.set_yticks(places, [_short(group.label) for group in groups_with_steps])
    axes.invert_yaxis()
    axes.set_xlabel("ms per step")
    _legend(axes)


def _epoch_times(axes: Axes, groups: Sequence[Group]) -> None:
    """Draw every epoch of every rank and repeat. The markers of warm-up epochs are hollow."""
    for number, group in enumerate(groups):
        style = _style(number)
        ranks = pd.concat([run.ranks for run in group.runs])
        shift = 0.6 * (number / max(1, len(groups) - 1) - 0.5)
        for warm, fill in ((False, style["color"]), (True, "none")):
            part = ranks[ranks["is_warmup"] == warm]
            axes.plot(
                part["epoch"] + 1 + shift, part["epoch_time_s"], style["marker"], color=style["color"],
                markerfacecolor=fill, markersize=4, label=_short(group.label) if not warm else None,
            )  # fmt: skip
    lap = lap_word(groups)
    axes.set_xlabel(f"{lap} (one mark per rank and repeat; hollow: warm-up, not counted)")
    axes.set_ylabel(f"{lap} time (s)")
    axes.set_ylim(0, 1.08 * max(run.ranks["epoch_time_s"].max() for group in groups for run in group.runs))
    _by_epochs(axes)
    _legend(axes)


def _by_epochs(axes: Axes) -> None:
    """Set integer ticks, even with a single epoch."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _score_curves(groups: Sequence[Group]) -> dict[str, bytes]:
    """Return a plot for each score, of the groups with this score."""
    scores = all_scores(groups)
    others = [score for score in scores if score != ACCURACY]
    names = {score: "score" if len(others) == 1 else f"score_{number}" for number, score in enumerate(others, start=1)}
    images = {}
    for score in scores:
        members = [group for group in groups if group.score == score]
        if members:
            name = names.get(score, "accuracy")
            images[name] = _curves(members, "score", score.name, score.axis_label, score.factor)
    return images


def _curves(groups: Sequence[Group], metric: str, name: str, axis_label: str, factor: int = 1) -> bytes:
    """Draw training (dashed) and validation (solid) over epochs and over wall time. Bands span the repeats.

    Args:
        metric: loss or score.
        name, axis_label: the name of the metric in the title and beside the axis.
        factor: the factor by which drawn values exceed recorded ones.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, time in zip(figure.subplots(1, 2), ("epoch", "elapsed_s"), strict=True):
        for number, group in enumerate(groups):
            for column, line in ((f"val_{metric}", "-"), (f"train_{metric}", "--")):
                curves = pd.concat([run.epochs.assign(repeat=i) for i, run in enumerate(group.runs)])
                over = curves.groupby("epoch").agg(
                    x=(time, "median") if time != "epoch" else ("is_warmup", "size"),
                    middle=(column, "median"), low=(column, "min"), high=(column, "max"),
                )  # fmt: skip
                x = over.index + 1 if time == "epoch" else over["x"]
                if over["middle"].isna().all():
                    continue
                color = COLORS[number % len(COLORS)]
                label = _short(group.label) if line == "-" or over["middle"].isna().all() else None
                mark = "o" if len(over) == 1 else ""  # a single epoch draws no line
                axes.plot(x, factor * over["middle"], line + mark, color=color, label=label, linewidth=1.4)
                axes.fill_between(x, factor * over["low"], factor * over["high"], color=color, alpha=0.15, linewidth=0)
        if time == "epoch":
            _by_epochs(axes)
        axes.set_xlabel(lap_word(groups) if time == "epoch" else "training time (s)")
        axes.set_ylabel(axis_label)
        axes.grid(alpha=0.3)
    _legend(figure.axes[0])
    figure.suptitle(f"{name[:1].upper()}{name[1:]} (solid: validation, dashed: training)", fontsize=10)
    return _save(figure)


def _resources(groups: Sequence[Group]) -> bytes:
    figure = Figure(figsize=(11, 0.42 * len(groups) + 1.6), layout="constrained")
    shown = (("resources", "peak_rss_bytes", 1e-9, "peak memory of all ranks (GB)"),
             ("resources", "cpu_percent", 1.0, "CPU use of all ranks (%; 100 is one core)"))  # fmt: skip
    for axes, (section, key, factor, label) in zip(figure.subplots(1, 2, sharey=True), shown, strict=True):
        values = [np.nan if (value := group.median(section, key)) is None else value * factor for group in groups]
        axes.barh(np.arange(len(groups)), values, color="#009E73")
        axes.set_xlabel(label)
        axes.grid(alpha=0.3, axis="x")
    figure.axes[0].set_yticks(np.arange(len(groups)), [_short(group.label) for group in groups])
    figure.axes[0].invert_yaxis()
    return _save(figure)


def _name(family: Family, families: Sequence[Family]) -> str:
    return (_short(family.name) if len(families) > 1 else "") or "measured"


def _style(number: int) -> dict[str, str]:
    return {"color": COLORS[number % len(COLORS)], "marker": _MARKERS[number % len(_MARKERS)]}


def _legend(axes: Axes) -> None:
    """Draw the legend below the axes, where it covers no data."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max((len(line) for label in labels for line in label.splitlines()), default=1)
    assert isinstance(axes.figure, Figure)
    columns = max(1, min(len(labels), int(axes.figure.get_figwidth() * 14 / (longest + 6))))
    axes.figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def _short(label: str) -> str:
    """Wrap a label to lines that fit beside the plot."""
    return textwrap.fill(label, 45, max_lines=3, placeholder=" ...")


def _png(draw: Callable[[Axes], None]) -> bytes:
    figure = Figure(figsize=(7.6, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    draw(axes)
    return _save(figure)


def _save(figure: Figure) -> bytes:
    FigureCanvasAgg(figure)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    return image.getvalue()
