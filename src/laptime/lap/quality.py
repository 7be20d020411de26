"""How far a run's figures can be trusted: a grade, with its reasons in plain words.

A: nothing was seen that would disturb a measurement. B: something was, and may have. C: something surely has. The
machine's load is recorded but gives no grade: it is a mean over minutes, and a sweep's own earlier runs raise it.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from laptime.machine.counters import Noise
from laptime.record.schema import EpochNoise

# Each rule: what is looked at, from where on it is a B and a C, and how it is said. Shares are of 1.
_RULES: tuple[tuple[str, float, float, str], ...] = (
    ("steal_fraction", 0.01, 0.05, "the hypervisor gave {:.0%} of the CPU time to others"),
    ("other_fraction", 0.05, 0.25, "other processes kept {:.0%} of the cores busy"),
    ("throttled_fraction", 0.01, 0.10, "the container's CPU quota was used up {:.0%} of the time"),
    ("frequency_drop", 0.10, 0.30, "the CPU's frequency fell by {:.0%}"),
    ("temperature_celsius", 95.0, math.inf, "the processor reached {:.0f} degrees, where most slow down"),
    ("involuntary_switches_per_s", 100.0, math.inf, "it was taken off its cores {:.0f} times a second"),
    ("swapped_per_s", 1.0, 100.0, "{:.0f} pages a second went to or came from the swap"),
    ("outlier_fraction", 0.01, 0.34, "{:.0%} of the {timed} are outliers"),
)
# What takes a core away from one thread while the others of its rank wait for it.
_WAITING = {"steal_fraction", "other_fraction", "throttled_fraction", "involuntary_switches_per_s"}
# An outlier is further from the median than this many scaled median absolute deviations, and than this share of it.
_OUTLIER_MADS, _OUTLIER_FRACTION = 3.5, 0.05


@dataclass(frozen=True)
class Quality:
    """A grade (A, B or C) and the reasons why it is no better."""

    grade: str
    reasons: tuple[str, ...]


def outliers(values: Sequence[float]) -> list[int]:
    """The places of values far from the median: modified z-score above 3.5, and more than 5% off.

    Source: Iglewicz and Hoaglin, How to Detect and Handle Outliers (1993).
    """
    if len(values) < 3:
        return []
    middle = statistics.median(values)
    mad = statistics.median(abs(value - middle) for value in values)
    least = max(_OUTLIER_MADS * mad / 0.6745, _OUTLIER_FRACTION * middle)
    return [place for place, value in enumerate(values) if abs(value - middle) > least]


def slow_start(values: Sequence[float]) -> float | None:
    """How many times as long as the others the first one took; None: no longer than they differ, or too few to tell.

    Longer means: than any other, and than their median by a tenth and by three times what they differ.
    """
    first, others = values[0] if values else 0.0, values[1:]
    if len(others) < 2:
        return None
    middle = statistics.median(others)
    least = middle + max(0.1 * middle, 3 * (max(others) - min(others)))
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
    warmup_key: str = "measure.warmup_epochs",
    one_thread: str = "strategy.threads_per_rank=1",
) -> Quality:
    """Grade a run.

    Args:
        epochs: of each counted one what `counters.delta` says.
        epoch_times_s: of the counted epochs.
        num_cores: of the machine, whether or not the run may use them all.
        battery: whether it ran on its battery.
        oversubscribed: whether it had more threads than cores.
        profiled: whether a profiler ran with it, whose cost is in the times.
        crowded: whether its own ranks or data workers take turns on its cores: then being taken off them is no news.
        runs_at_once: of its sweep, itself among them.
        timed: what the times are of, as the reasons name it.
        slowing_settings: environment variables and other settings that make it slower, as `NAME=value`.
        threads: of each rank, as the run was given them, and as torch had them at the end; None: not known.
        warmup_key: what leaves out more epochs, or laps.
        one_thread: what gives each rank one thread.
    """
    found = _figures(epochs, epoch_times_s, num_cores, crowded)
    grade, reasons, found_bad = "A", [], set[str]()
    for name, b, c, words in _RULES:
        value = found.get(name, 0.0)
        if value >= b:
            grade = max(grade, "C" if value >= c else "B")
            reasons.append(words.format(value, timed=timed))
            found_bad.add(name)
    if (times := slow_start(epoch_times_s)) is not None and timed in ("epochs", "laps"):
        grade = max(grade, "B")
        reasons.append(f"the first counted {timed[:-1]} took {times:.1f} times the others: {warmup_key} is too small")
    if battery:
        grade = max(grade, "B")
        reasons.append("it ran on its battery")
    if oversubscribed:
        grade = max(grade, "B")
        reasons.append("there were more threads than cores")
    if runs_at_once > 1:
        grade = max(grade, "B")
        reasons.append(f"{runs_at_once} runs at once shared the machine")
    if threads is not None and threads[0] > 1 and (oversubscribed or _WAITING & found_bad):
        reasons.append(f"the threads of a rank wait for each other then: {one_thread} may be faster")
    if slowing_settings:
        grade = max(grade, "B")
        reasons.append(f"settings slow it down: {', '.join(slowing_settings)}")
    if threads is not None and threads[0] != threads[1]:
        grade = "C"
        reasons.append(f"the model or a callback changed torch's threads from {threads[0]} to {threads[1]}")
    if profiled:
        grade = "C"
        reasons.append("a profiler's own cost is in the times")
    return Quality(grade, tuple(reasons))


def _figures(
    epochs: Sequence[Noise | EpochNoise], epoch_times_s: Sequence[float], num_cores: int, crowded: bool
) -> dict[str, float]:
    """What the rules look at, by its name there, as far as it is known."""
    found: dict[str, float] = {}
    for name in ("steal_fraction", "throttled_fraction", *(() if crowded else ("involuntary_switches_per_s",))):
        if known := [value for epoch in epochs if (value := getattr(epoch, name)) is not None]:
            found[name] = statistics.median(known)
    if others := [epoch.other_cores for epoch in epochs if epoch.other_cores is not None]:
        found["other_fraction"] = min(1.0, statistics.median(others) / num_cores)
    if temperatures := [epoch.temperature_celsius for epoch in epochs if epoch.temperature_celsius is not None]:
        found["temperature_celsius"] = max(temperatures)
    frequencies = [epoch.frequency_hz for epoch in epochs if epoch.frequency_hz]
    if len(frequencies) > 1:
        found["frequency_drop"] = 1 - min(frequencies) / max(frequencies)
    if swapped := [(epoch.num_swapped_pages, epoch.wall_s) for epoch in epochs if epoch.num_swapped_pages]:
        found["swapped_per_s"] = sum(pages for pages, _ in swapped) / sum(wall_s for _, wall_s in swapped)
    if epoch_times_s:
        found["outlier_fraction"] = len(outliers(epoch_times_s)) / len(epoch_times_s)
    return found
