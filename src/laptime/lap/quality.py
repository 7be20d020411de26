"""Grades how far a run's figures can be trusted, and gives the reasons.

A: no interference with the measurement was detected. B: something may have interfered with it. C: something certainly
did. The load average is recorded but changes no grade: it is a mean over minutes, so a sweep's earlier runs raise it.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from laptime.machine.counters import Noise
from laptime.record.schema import EpochNoise

# Each rule has a figure, the values from which it gives a B and a C, and the reason. Fractions are between 0 and 1.
_RULES: tuple[tuple[str, float, float, str], ...] = (
    ("steal_fraction", 0.01, 0.05, "CPU steal {:.0%}"),
    ("other_fraction", 0.05, 0.25, "other processes kept {:.0%} of the cores busy"),
    ("throttled_fraction", 0.01, 0.10, "the container's CPU quota throttled it {:.0%} of the time"),
    ("frequency_drop", 0.10, 0.30, "the CPU frequency dropped by {:.0%}"),
    ("temperature_celsius", 95.0, math.inf, "the CPU reached {:.0f} °C, at which most CPUs throttle"),
    ("involuntary_switches_per_s", 100.0, math.inf, "{:,.0f} involuntary context switches/s"),
    ("swapped_per_s", 1.0, 100.0, "{:,.0f} swapped pages/s"),
    ("outlier_fraction", 0.01, 0.34, "{outliers}"),
)
# These take a core away from one thread, and the other threads of its rank wait for it.
_CORE_INTERRUPTIONS = {"steal_fraction", "other_fraction", "throttled_fraction", "involuntary_switches_per_s"}
# An outlier's distance from the median exceeds this many scaled median absolute deviations and this fraction of it.
_OUTLIER_MADS, _OUTLIER_FRACTION = 3.5, 0.05


@dataclass(frozen=True)
class Quality:
    """A grade (A, B or C) and the reasons why it is not better."""

    grade: str
    reasons: tuple[str, ...]


def describe(grade: str, reasons: Sequence[str]) -> str:
    """Return a grade with its reasons: `A (no interference detected)` or `B: the machine ran on battery`."""
    return f"{grade}: {'; '.join(reasons)}" if reasons else f"{grade} (no interference detected)"


def outliers(values: Sequence[float]) -> list[int]:
    """Return the indices of values with a modified z-score above 3.5 that are also more than 5% from the median.

    Source: Iglewicz and Hoaglin, How to Detect and Handle Outliers (1993).
    """
    if len(values) < 3:
        return []
    middle = statistics.median(values)
    mad = statistics.median(abs(value - middle) for value in values)
    least = max(_OUTLIER_MADS * mad / 0.6745, _OUTLIER_FRACTION * middle)
    return [index for index, value in enumerate(values) if abs(value - middle) > least]


def slow_start(values: Sequence[float]) -> float | None:
    """Return the first value divided by the median of the rest, if it is an outlier; otherwise None.

    It is an outlier if it exceeds that median by 10% and by three times the range of the rest. With fewer than three
    values it is never an outlier.
    """
    first, rest = values[0] if values else 0.0, values[1:]
    if len(rest) < 2:
        return None
    middle = statistics.median(rest)
    least = middle + max(0.1 * middle, 3 * (max(rest) - min(rest)))
    return first / middle if first > least else None


def assess(
    epochs: Sequence[Noise | EpochNoise],
    epoch_times_s: Sequence[float],
    num_cores: int,
    battery: bool | None = None,
    oversubscribed: bool = False,
    profiled: bool = False,
    crowded: bool = False,
    runs_at_once: int = 1,
    timed: str = "epochs",
    slowing_settings: Sequence[str] = (),
    threads: tuple[int, int] | None = None,
    more_warmup: str = "measure.warmup_epochs=2",
    one_thread: str = "strategy.threads_per_rank=1",
) -> Quality:
    """Grade a run.

    Args:
        epochs: the result of `counters.delta` for each counted epoch.
        epoch_times_s: seconds of each counted epoch.
        num_cores: number of cores of the machine, including those that the run may not use.
        battery: whether the machine ran on battery.
        oversubscribed: whether the run had more threads than cores.
        profiled: whether a profiler ran; its overhead is in the times.
        crowded: whether the run's own ranks or data workers compete for cores, which makes context switches normal.
        runs_at_once: number of concurrent runs of its sweep, including itself.
        timed: the word for what was timed, used in the reasons: `epochs` or `laps`.
        slowing_settings: environment variables and other settings that slow the run down, as `NAME=value`.
        threads: torch's threads of a rank, as configured and at the end; None: not known.
        more_warmup: the setting that excludes one more epoch or lap; the reasons mention it.
        one_thread: the setting that gives each rank one thread; the reasons mention it.
    """
    figures = _figures(epochs, epoch_times_s, num_cores, crowded)
    grade, reasons, exceeded = "A", [], set[str]()
    for name, b, c, words in _RULES:
        value = figures.get(name, 0.0)
        if value >= b:
            grade = max(grade, "C" if value >= c else "B")
            reasons.append(words.format(value, outliers=_outlier_words(epoch_times_s, timed)))
            exceeded.add(name)
    if (times := slow_start(epoch_times_s)) is not None and timed in ("epochs", "laps"):
        grade = max(grade, "B")
        reasons.append(
            f"the first counted {timed[:-1]} took {times:.1f} times as long as the others: use {more_warmup}"
        )
    if battery:
        grade = max(grade, "B")
        reasons.append("the machine ran on battery")
    if oversubscribed:
        grade = max(grade, "B")
        reasons.append("more threads than cores")
    if runs_at_once > 1:
        grade = max(grade, "B")
        reasons.append(f"{runs_at_once} concurrent runs shared the machine")
    if threads is not None and threads[0] > 1 and (oversubscribed or _CORE_INTERRUPTIONS & exceeded):
        reasons.append(f"{one_thread} may be faster")
    if slowing_settings:
        grade = max(grade, "B")
        reasons.append(f"settings that slow torch down: {', '.join(slowing_settings)}")
    if threads is not None and threads[0] != threads[1]:
        grade = "C"
        reasons.append(f"the model or a callback changed torch's number of threads from {threads[0]} to {threads[1]}")
    if profiled:
        grade = "C"
        reasons.append("the times include the overhead of a profiler")
    return Quality(grade, tuple(reasons))


def _outlier_words(times_s: Sequence[float], timed: str) -> str:
    num = len(outliers(times_s))
    return f"{num} of {len(times_s)} {timed} {'is an outlier' if num == 1 else 'are outliers'}"


def _figures(
    epochs: Sequence[Noise | EpochNoise], epoch_times_s: Sequence[float], num_cores: int, crowded: bool
) -> dict[str, float]:
    """Return the known figures that the rules need, by name."""
    figures: dict[str, float] = {}
    for name in ("steal_fraction", "throttled_fraction", *(() if crowded else ("involuntary_switches_per_s",))):
        if values := [value for epoch in epochs if (value := getattr(epoch, name)) is not None]:
            figures[name] = statistics.median(values)
    if other_cores := [epoch.other_cores for epoch in epochs if epoch.other_cores is not None]:
        figures["other_fraction"] = min(1.0, statistics.median(other_cores) / num_cores)
    if temperatures := [epoch.temperature_celsius for epoch in epochs if epoch.temperature_celsius is not None]:
        figures["temperature_celsius"] = max(temperatures)
    frequencies = [epoch.frequency_hz for epoch in epochs if epoch.frequency_hz]
    if len(frequencies) > 1:
        figures["frequency_drop"] = 1 - min(frequencies) / max(frequencies)
    if swapped := [(epoch.num_swapped_pages, epoch.wall_s) for epoch in epochs if epoch.num_swapped_pages]:
        figures["swapped_per_s"] = sum(pages for pages, _ in swapped) / sum(wall_s for _, wall_s in swapped)
    if epoch_times_s:
        figures["outlier_fraction"] = len(outliers(epoch_times_s)) / len(epoch_times_s)
    return figures
