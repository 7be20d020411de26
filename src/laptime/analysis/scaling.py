"""What more ranks bring: speedup, efficiency, serial fraction, and models fitted to them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from laptime.analysis.statistics import CONFIDENCE, Interval


def speedup(samples_per_s: float, baseline_samples_per_s: float) -> float:
    """Throughput over the baseline's: right for strong and weak scaling alike."""
    return samples_per_s / baseline_samples_per_s


def efficiency(speedup: float, world_size: int) -> float:
    """Speedup per rank, a fraction."""
    return speedup / world_size


def karp_flatt(speedup: float, world_size: int) -> float | None:
    """The share of the work that behaves as if it were serial; None for one rank.

    (1/S - 1/p) / (1 - 1/p). Source: Karp and Flatt, Measuring parallel processor performance, CACM 33 (1990).
    """
    if world_size < 2:
        return None
    return (1 / speedup - 1 / world_size) / (1 - 1 / world_size)


def amdahl(world_size: np.ndarray, serial: float) -> np.ndarray:
    """Speedup of p ranks where a share of the work stays serial: 1 / (s + (1 - s) / p).

    Source: Amdahl, Validity of the single processor approach, AFIPS 1967.
    """
    return np.asarray(1 / (serial + (1 - serial) / world_size))


def usl(world_size: np.ndarray, contention: float, coherency: float) -> np.ndarray:
    """Speedup of p ranks that queue for shared things and talk to each other in pairs: p / (1 + a(p-1) + b p(p-1)).

    Source: Gunther, Guerrilla Capacity Planning (2007), chapter 4.
    """
    p = world_size
    return np.asarray(p / (1 + contention * (p - 1) + coherency * p * (p - 1)))


@dataclass(frozen=True)
class Fit:
    """A model of the speedup over world size.

    Attributes:
        name: amdahl or usl.
        parameters: by name.
        intervals: of each parameter; None where there are no degrees of freedom left.
        r_squared: share of the speedups' variance that the model explains.
        best_world_size: at which the modelled speedup is largest; None: it grows for ever, or can't be told.
    """

    name: str
    parameters: dict[str, float]
    intervals: dict[str, Interval] | None
    r_squared: float
    best_world_size: float | None

    def predict(self, world_size: Sequence[int]) -> np.ndarray:
        """Modelled speedup."""
        model = amdahl if self.name == "amdahl" else usl
        return model(np.asarray(world_size, float), *self.parameters.values())


def fit(name: str, world_size: Sequence[int], speedups: Sequence[float]) -> Fit | None:
    """Fit a model by least squares within its bounds (parameters from 0; Amdahl's share up to 1).

    Args:
        name: amdahl or usl.
        world_size: of each speedup.
        speedups: one or more per world size.

    Returns:
        None where there are fewer than three different world sizes.
    """
    if len(set(world_size)) < 3:
        return None
    p, s = np.asarray(world_size, float), np.asarray(speedups, float)
    model, names = (amdahl, ["serial"]) if name == "amdahl" else (usl, ["contention", "coherency"])
    upper = 1.0 if name == "amdahl" else np.inf
    values, covariance = optimize.curve_fit(model, p, s, p0=[0.1] * len(names), bounds=(0, upper))
    residual = float(((s - model(p, *values)) ** 2).sum())
    total = float(((s - s.mean()) ** 2).sum())
    freedom = len(s) - len(names)
    intervals = None
    if freedom > 0 and np.isfinite(covariance).all():
        reach = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(np.diag(covariance))
        bounds = zip(names, values, reach, strict=True)
        intervals = {key: Interval(max(0.0, float(v - r)), float(v + r)) for key, v, r in bounds}
    return Fit(
        name=name,
        parameters=dict(zip(names, map(float, values), strict=True)),
        intervals=intervals,
        r_squared=1 - residual / total if total else math.nan,
        best_world_size=_best(intervals, max(world_size)) if name == "usl" else None,
    )


def peak(contention: float, coherency: float) -> float:
    """The world size at which the universal scalability law's speedup is largest: sqrt((1 - a) / b); infinite for b=0."""
    if coherency <= 0:
        return math.inf
    return math.sqrt(max(0.0, 1 - contention) / coherency)


def _best(intervals: dict[str, Interval] | None, largest: int) -> float | None:
    """The peak, where its whole interval lies within twice what was measured; None: the data can't say."""
    if intervals is None:
        return None
    contention, coherency = intervals["contention"], intervals["coherency"]
    highest = peak(contention.low, coherency.low)
    if highest > 2 * largest:
        return None
    return peak((contention.low + contention.high) / 2, (coherency.low + coherency.high) / 2)
