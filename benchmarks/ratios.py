"""Shared by the benchmarks: measure the sides of a comparison alternately, print medians and ratios, plot them."""

import argparse
import contextlib
import io
import json
import logging
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import laptime

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
SHORT = ("device=cpu", "measure.breakdown=false", "measure.peak=false")

_BASELINE_COLOR, _COLOR = "#999999", "#0072B2"  # the blue of laptime.analysis.plots
_ROW_INCHES, _CASE_INCHES = 0.52, 0.75


class Measured(NamedTuple):
    """One round of one side.

    Attributes:
        samples_per_s: throughput of the median epoch.
        loss: mean training loss of the last epoch; None: not measured.
    """

    samples_per_s: float
    loss: float | None = None


@dataclass
class Comparison:
    """Sides of one case, round by round.

    Attributes:
        title: what was measured.
        sides: each side's rounds. The first side is the baseline.
        goals: goal of a side's ratio: a maximum for times, a minimum for throughput.
        of_times: whether ratios are ratios of times instead of throughput.
        ratios: by side, the ratio to the baseline in each round; computed from `sides` by default.
        unit: unit of `samples_per_s`, if it holds something else than a throughput.
    """

    title: str
    sides: dict[str, list[Measured]]
    goals: Mapping[str, float] = field(default_factory=dict)
    of_times: bool = False
    ratios: dict[str, list[float]] = field(default_factory=dict)
    unit: str = "samples/s"

    def __post_init__(self) -> None:
        for side in list(self.sides)[1:]:
            self.ratios.setdefault(side, [self._ratio(*pair) for pair in self._pairs(side)])

    def _pairs(self, side: str) -> Iterator[tuple[Measured, Measured]]:
        return zip(self.sides[self.baseline], self.sides[side], strict=True)

    def _ratio(self, baseline: Measured, side: Measured) -> float:
        ratio = side.samples_per_s / baseline.samples_per_s
        return 1 / ratio if self.of_times else ratio

    @property
    def baseline(self) -> str:
        return next(iter(self.sides))

    @property
    def num_rounds(self) -> int:
        return len(self.sides[self.baseline])

    def samples_per_s(self, side: str) -> float:
        """Median of the rounds."""
        return statistics.median(measured.samples_per_s for measured in self.sides[side])

    def speed(self, side: str) -> str:
        """The median with its unit: `31,000 samples/s`."""
        return f"{self.samples_per_s(side):,.{0 if self.unit == 'samples/s' else 1}f} {self.unit}"

    def loss(self, side: str) -> float | None:
        """Median of the rounds."""
        losses = [measured.loss for measured in self.sides[side] if measured.loss is not None]
        return statistics.median(losses) if losses else None

    def ratio(self, side: str) -> str:
        """Median, smallest and largest round: `4.31 x (4.20 to 4.44)`."""
        ratios = self.ratios[side]
        unit, digits = ("x the time", 3) if self.of_times else ("x", 2)
        return f"{statistics.median(ratios):.{digits}f} {unit} ({min(ratios):.{digits}f} to {max(ratios):.{digits}f})"

    def goal(self, side: str) -> str:
        """The goal as text, `goal: 4 x`; empty if there is none."""
        if side not in self.goals:
            return ""
        return f"goal: {'at most ' if self.of_times else ''}{self.goals[side]:g} x"

    def is_met(self, side: str) -> bool:
        median, goal = statistics.median(self.ratios[side]), self.goals[side]
        return median <= goal if self.of_times else median >= goal


def alternate(
    title: str, sides: Mapping[str, Callable[[], Measured]], goals: Mapping[str, float], rounds: int
) -> Comparison:
    """Measure every side in every round. The order of the sides is reversed from round to round.

    Args:
        sides: functions that measure one round. The first side is the baseline.
    """
    measured: dict[str, list[Measured]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in reversed(list(sides)) if number % 2 else list(sides):
            measured[side].append(sides[side]())
    return Comparison(title, measured, goals)


def show(comparison: Comparison) -> None:
    """Print one line per side."""
    print(f"{comparison.title}, medians (min to max) of {comparison.num_rounds} rounds")
    width = max(map(len, comparison.sides))
    for side in comparison.sides:
        line = f"  {side:{width}}  {comparison.speed(side):>18}"
        if (loss := comparison.loss(side)) is not None:
            line += f"  loss {loss:.4f}"
        if side in comparison.ratios:
            line += f"  {comparison.ratio(side)}"
        if side in comparison.goals:
            line += f"  {comparison.goal(side)}, {'met' if comparison.is_met(side) else 'not met'}"
        print(line, flush=True)


def require_learning(measured: Measured, num_classes: int = 10) -> Measured:
    """Return the measurement, if its loss shows that the network has learned: else the throughput means nothing."""
    chance = math.log(num_classes)
    assert measured.loss is not None and 0 < measured.loss < 0.8 * chance, f"loss {measured.loss}, chance {chance:.4f}"
    return measured


def in_fresh_process(function: Callable[..., Measured], *arguments: Any) -> Measured:
    """Call a module's function in a new process without printing, and return its result."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_quietly, function, *arguments).result()


def _quietly(function: Callable[..., Measured], *arguments: Any) -> Measured:
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    # A spawned process would also spawn its data workers. Use the system's default, as a script does: it is faster.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    logging.disable(logging.INFO)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):  # noqa: PTH123
        return function(*arguments)


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def run_in_process(folder: Path, *overrides: str) -> dict[str, Any]:
    """Run Laptime silently in this process, and return its record. After the epochs it only tests.

    Args:
        folder: folder in which the run directory `run` is created.
    """
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return laptime.run([*SHORT, f"hydra.run.dir={folder / 'run'}", *overrides])


def run_in_subprocess(*arguments: str, environment: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """Run `python train.py ARGUMENTS`, a run or a sweep, and return its records.

    Args:
        environment: variables to add to this process's environment.
    """
    with tempfile.TemporaryDirectory() as folder:
        kind = "sweep" if "-m" in arguments else "run"
        done = subprocess.run(
            [sys.executable, str(TRAIN), *arguments, "device=cpu", "logger=none", f"hydra.{kind}.dir={folder}/run"],
            capture_output=True, text=True, cwd=folder, env=os.environ | (environment or {}),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [json.loads(path.read_text()) for path in sorted(Path(folder).rglob("run.json"))]


def run_laptime(overrides: Sequence[str]) -> Measured:
    """Measure one run of Laptime without validation."""
    with tempfile.TemporaryDirectory() as folder:
        record = run_in_process(Path(folder), "logger=none", "scheduler=none", "dataset.val_fraction=0", *overrides)
    return require_speed(record)


def require_speed(record: Mapping[str, Any]) -> Measured:
    """The throughput and the loss in a run's record, if the network has learned."""
    return require_learning(Measured(record["timing"]["samples_per_s"], record["result"]["train_loss"]))


def add_arguments(parser: argparse.ArgumentParser, rounds: int = 5) -> None:
    """Add --rounds and --plot."""
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--plot", type=Path, metavar="FILE.svg", help="also plot the medians")


def add_epoch_arguments(parser: argparse.ArgumentParser, limit: int | None, samples: str) -> None:
    """Add --batch-size, --epochs, --limit and --threads.

    Args:
        limit: default of --limit.
        samples: help of --limit.
    """
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2, help="counted epochs per round and side")
    parser.add_argument("--limit", type=int, default=limit, help=samples)
    parser.add_argument("--threads", type=int, default=2)


def report(comparisons: Iterable[Comparison], title: str, plot: Path | None) -> None:
    """Print each comparison when it is complete. Plot all of them if `plot` names a file."""
    finished = []
    for comparison in comparisons:
        show(comparison)
        finished.append(comparison)
    if plot is not None:
        draw(finished, title, plot)


@matplotlib.rc_context({"svg.hashsalt": "laptime", "text.parse_math": False})
def draw(comparisons: Sequence[Comparison], title: str, file: Path) -> None:
    """Write an SVG with a bar per side and a stroke per round. Equal figures give equal bytes."""
    heights = [_CASE_INCHES + _ROW_INCHES * len(comparison.sides) for comparison in comparisons]
    figure = Figure(figsize=(8.4, sum(heights) + 0.8), layout="constrained")
    all_axes = figure.subplots(len(comparisons), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, comparison in zip(all_axes, comparisons, strict=True):
        _draw_case(axes, comparison)
    all_axes[-1].set_xlabel(f"{comparisons[-1].unit} (bar: median; strokes: rounds{_dashes(comparisons)})", fontsize=9)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left", fontweight="bold")
    figure.supxlabel(_machine(), fontsize=8, color="#555555", x=0.01, ha="left")
    file.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasSVG(figure)
    figure.savefig(file, format=file.suffix[1:], metadata={"Date": None} if file.suffix == ".svg" else None)


def _draw_case(axes: Axes, comparison: Comparison) -> None:
    rows = range(len(comparison.sides))
    baseline = comparison.samples_per_s(comparison.baseline)
    ends = []
    for row, (side, rounds) in zip(rows, comparison.sides.items(), strict=True):
        median, values = comparison.samples_per_s(side), [measured.samples_per_s for measured in rounds]
        color = _BASELINE_COLOR if side == comparison.baseline else _COLOR
        axes.barh(row, median, height=0.62, color=color)
        axes.plot(values, [row] * len(values), "|", color="#000000", markersize=8)
        ends.append(max(values))
        if side in comparison.goals:
            goal = baseline / comparison.goals[side] if comparison.of_times else baseline * comparison.goals[side]
            axes.plot([goal, goal], [row - 0.42, row + 0.42], "--", color="#D55E00", linewidth=1.6)
            ends[-1] = max(ends[-1], goal)
        label = comparison.speed(side)
        if side in comparison.ratios:
            label += f"\n{comparison.ratio(side)}"
            label += f", {comparison.goal(side)}" if side in comparison.goals else ""
        axes.annotate(label, (ends[-1], row), xytext=(7, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.set_xlim(0, 1.9 * max(ends))  # leaves space for the labels
    axes.set_yticks(rows, list(comparison.sides), fontsize=9)
    axes.set_ylim(len(comparison.sides) - 0.45, -0.55)
    axes.set_title(comparison.title, fontsize=9.5, loc="left")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xticks([tick for tick in MaxNLocator(5).tick_values(0, max(ends)) if tick <= max(ends)])
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)


def _dashes(comparisons: Sequence[Comparison]) -> str:
    return "; dashes: goal" if any(comparison.goals for comparison in comparisons) else ""


def _machine() -> str:
    from laptime.machine.device import cpu_name, usable_cores  # loads torch, which the measuring process configures

    return f"{usable_cores()} cores of {cpu_name()}, torch {version('torch')}"
