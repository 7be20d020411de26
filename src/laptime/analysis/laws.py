"""Scaling laws: speedup, efficiency, serial fraction, and models fitted to speedups."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from laptime.analysis.statistics import CONFIDENCE, Interval


def speedup(samples_per_s: float, baseline_samples_per_s: float) -> float:
    """Return the throughput divided by the baseline's. Valid for strong and for weak scaling."""
    return samples_per_s / baseline_samples_per_s


def efficiency(speedup: float, world_size: int) -> float:
    """Return the speedup per rank, a fraction."""
    return speedup / world_size


def karp_flatt(speedup: float, world_size: int) -> float | None:
    """Return the fraction of the work that behaves as if it were serial; None for one rank.

    It is (1/S - 1/p) / (1 - 1/p) for speedup S on p ranks.

    Source: Karp and Flatt, Measuring parallel processor performance, CACM 33 (1990).
    """
    if world_size < 2:
        return None
    return (1 / speedup - 1 / world_size) / (1 - 1 / world_size)


def amdahl(world_size: np.ndarray, serial: float) -> np.ndarray:
    """Return the speedup of p ranks if a fraction s of the work is serial: 1 / (s + (1 - s) / p).

    Source: Amdahl, Validity of the single processor approach, AFIPS 1967.
    """
    return np.asarray(1 / (serial + (1 - serial) / world_size))


def usl(world_size: np.ndarray, contention: float, coherency: float) -> np.ndarray:
    """Return the speedup of p ranks with contention a and pairwise communication cost b: p / (1 + a(p-1) + b p(p-1)).

    Source: Gunther, Guerrilla Capacity Planning (2007), chapter 4.
    """
    p = world_size
    return np.asarray(p / (1 + contention * (p - 1) + coherency * p * (p - 1)))


@dataclass(frozen=True)
class Fit:
    """A fitted model of speedup by world size.

    Attributes:
        name: amdahl or usl.
        parameters: the fitted parameters by name.
        intervals: the interval of each parameter, from the curvature at the best fit and Student's t; None: no degrees
            of freedom are left.
        r_squared: fraction of the speedups' variance that the model explains; None: the speedups are equal. It is low
            if they hardly vary, even if the model fits well.
        deviation: root mean squared residual divided by the mean speedup.
        baseline_error: relative standard error of the baseline's throughput.
        best_world_size: the world size with the largest modeled speedup, and its interval; None: the speedup grows
            without bound, or the interval reaches beyond twice the largest measured world size.
    """

    name: str
    parameters: dict[str, float]
    intervals: dict[str, Interval] | None
    r_squared: float | None
    deviation: float
    best_world_size: tuple[float, Interval] | None
    draws: np.ndarray | None = field(repr=False, compare=False)
    baseline_error: float = 0.0

    @property
    def is_good_fit(self) -> bool:
        """Whether the model fits well enough to be plotted and extrapolated."""
        return self.deviation <= _MAX_DEVIATION

    def predict(self, world_size: Sequence[float]) -> np.ndarray:
        return _MODELS[self.name][0](np.asarray(world_size, float), *self.parameters.values())

    def interval(self, world_size: float) -> Interval | None:
        """Return the 95% interval of the modeled speedup, from sampled parameters; None if `intervals` is None."""
        if self.draws is None:
            return None
        samples = _MODELS[self.name][0](np.asarray(world_size, float), *self.draws.T)
        # The baseline's error is common to all speedups, so the parameters' errors don't contain it.
        common_error = np.random.default_rng(1).normal(0, self.baseline_error, len(samples))
        interval = _central_interval(samples * np.exp(common_error))
        # If a parameter is at its bound, all samples are on one side of the prediction.
        best = float(self.predict([world_size])[0])
        return Interval(min(interval.low, best), max(interval.high, best))


_MODELS: dict[str, tuple[Callable[..., np.ndarray], list[str], float]] = {
    "amdahl": (amdahl, ["serial"], 1.0),
    "usl": (usl, ["contention", "coherency"], np.inf),
}
# Names in reports.
TITLES = {"amdahl": "Amdahl's law", "usl": "Universal scalability law"}
_DRAWS = 4000
# A model with a larger relative deviation is neither plotted nor extrapolated.
_MAX_DEVIATION = 0.15


def fit(name: str, world_size: Sequence[int], speedups: Sequence[float], baseline_error: float = 0.0) -> Fit | None:
    """Fit a model by least squares within its bounds (parameters from 0; Amdahl's serial fraction up to 1).

    Args:
        name: amdahl or usl.
        world_size: the world size of each speedup.
        speedups: the measured speedups, one or more per world size.
        baseline_error: relative standard error of the baseline's throughput.

    Returns:
        The fit; None: there are fewer than three different world sizes.
    """
    if len(set(world_size)) < 3:
        return None
    from scipy import optimize, special  # slow to import; scipy.stats would take twice as long

    order = np.lexsort((speedups, world_size))
    p, s = np.asarray(world_size, float)[order], np.asarray(speedups, float)[order]
    p, s = p[p > 1], s[p > 1]  # for one rank, every law gives 1 whatever its parameters
    model, names, upper = _MODELS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optimize.OptimizeWarning)  # without a covariance there is no interval
        values, covariance = optimize.curve_fit(model, p, s, p0=[0.1] * len(names), bounds=(0, upper))
    residual = float(((s - model(p, *values)) ** 2).sum())
    total = float(((s - s.mean()) ** 2).sum())
    freedom = len(s) - len(names)
    intervals, draws = None, None
    if freedom > 0 and np.isfinite(covariance).all():
        reach = special.stdtrit(freedom, (1 + CONFIDENCE) / 2) * np.sqrt(np.diag(covariance))
        bounds = zip(names, values, reach, strict=True)
        intervals = {key: Interval(max(0.0, float(v - r)), min(upper, float(v + r))) for key, v, r in bounds}
        rng = np.random.default_rng(0)
        steps = rng.multivariate_normal(np.zeros(len(names)), covariance, _DRAWS, check_valid="ignore")
        heavy_tails = np.sqrt(freedom / rng.chisquare(freedom, _DRAWS))
        draws = np.clip(values + steps * heavy_tails[:, None], 0, upper)
    parameters = dict(zip(names, map(float, values), strict=True))
    best = None
    if name == "usl" and draws is not None:
        best = _best(peak(**parameters), np.array([peak(*draw) for draw in draws]), max(world_size))
    r_squared = 1 - residual / total if total else None
    deviation = math.sqrt(residual / len(s)) / float(s.mean())
    return Fit(name, parameters, intervals, r_squared, deviation, best, draws, baseline_error)


def peak(contention: float, coherency: float) -> float:
    """Return the world size with the largest speedup by the universal scalability law.

    It is sqrt((1 - a) / b), but at least 1, and infinite for b = 0 and a < 1.
    """
    if contention >= 1:
        return 1.0
    return max(1.0, math.sqrt((1 - contention) / coherency)) if coherency > 0 else math.inf


def _best(best: float, samples: np.ndarray, largest: int) -> tuple[float, Interval] | None:
    interval = _central_interval(samples)
    interval = Interval(min(interval.low, best), max(interval.high, best))
    return (best, interval) if interval.high <= 2 * largest else None


def _central_interval(samples: np.ndarray) -> Interval:
    outside = (1 - CONFIDENCE) / 2
    low, high = np.quantile(samples, [outside, 1 - outside], method="nearest")
    return Interval(float(low), float(high))
