"""Statistics over repeats: medians, standard deviations, intervals of ratios, and the significance of differences.

The sampling unit is the repeat (one process), not the epoch: epochs of one process are correlated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
_RESAMPLES = 9999
# With fewer repeats, bootstrap intervals are too narrow: with three, they cover the true value in about 90% of cases.
MIN_REPEATS = 5


@dataclass(frozen=True)
class Interval:
    """A 95% interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """Statistics of one figure over the repeats of a group.

    Attributes:
        num_repeats: number of processes.
        median: the median of the repeats' medians.
        std_repeats: standard deviation of the repeats' medians; None with one repeat.
        std_epochs: standard deviation of a repeat's epochs, as the median over the repeats; None: no repeat has two
            epochs.
        low, high: smallest and largest single value.
    """

    num_repeats: int
    median: float
    std_repeats: float | None
    std_epochs: float | None
    low: float
    high: float


def summarize(repeats: Sequence[Sequence[float]]) -> Summary:
    """Summarize one figure of a group.

    Args:
        repeats: the counted values of each repeat. There is at least one repeat, with at least one value in each.

    Raises:
        ValueError: a repeat has no value, or there is no repeat.
    """
    if not repeats or any(len(values) == 0 for values in repeats):
        raise ValueError("every repeat needs a value")
    medians = [float(np.median(values)) for values in repeats]
    stds = [float(np.std(values, ddof=1)) for values in repeats if len(values) > 1]
    all_values = [value for values in repeats for value in values]
    median, std_repeats = median_and_deviation(medians)
    return Summary(
        num_repeats=len(repeats),
        median=median,
        std_repeats=std_repeats,
        std_epochs=float(np.median(stds)) if stds else None,
        low=min(all_values),
        high=max(all_values),
    )


def median_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return median and standard deviation. The standard deviation of a single value is None.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("no value")
    return float(np.median(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Return the median of one group's repeats divided by the median of another's."""
    return float(np.median(numerator) / np.median(denominator))


def ratio_interval(numerator: Sequence[float], denominator: Sequence[float]) -> Interval | None:
    """Return the bootstrap percentile interval of `ratio`; None with one repeat on either side.

    Both groups are resampled independently. The order of the values does not change the interval. Source: Efron and
    Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    if len(numerator) < 2 or len(denominator) < 2:
        return None
    a, b = _resampled_medians(numerator, denominator)
    return _percentile_interval(a / b)


def _resampled_medians(*samples: Sequence[float]) -> list[np.ndarray]:
    """Return the medians of the bootstrap resamples of each sample, (_RESAMPLES,)."""
    rng = np.random.default_rng(0)
    indices = [rng.integers(0, len(values), (_RESAMPLES, len(values))) for values in samples]
    return [np.median(np.sort(values)[i], axis=1) for values, i in zip(samples, indices, strict=True)]


def _percentile_interval(estimates: np.ndarray) -> Interval:
    """Return the central 95% of the estimates, interpolated.

    It equals the interval of scipy.stats.bootstrap, which is slow to import. np.quantile rounds differently.
    """
    ordered = np.sort(estimates)
    outside = (1 - CONFIDENCE) / 2
    bounds = []
    for fraction in (outside, 1 - outside):
        place = fraction * len(ordered) + 1 - fraction  # counted from 1
        below, weight = int(place) - 1, place % 1
        bounds.append(float((1 - weight) * ordered[below] + weight * ordered[below + 1]))
    return Interval(*bounds)


def relative_error(values: Sequence[float]) -> float:
    """Return the standard error of a median as a fraction of the median, in the normal approximation.

    It is 0 for a single value, whose error is unknown.
    """
    if len(values) < 2:
        return 0.0
    return math.sqrt(math.pi / 2) * float(np.std(np.log(values), ddof=1)) / math.sqrt(len(values))


def relative_width(values: Sequence[float]) -> float | None:
    """Return the width of the bootstrap interval of a median, as a fraction of the median; None for a single value."""
    if len(values) < 2:
        return None
    (medians,) = _resampled_medians(values)
    interval = _percentile_interval(medians)
    return (interval.high - interval.low) / float(np.median(values))


def trend(series: Sequence[Sequence[float]], level: float = 0.01) -> float | None:
    """Return how much several series rise (or fall) from first to last value, as a fraction of their median.

    None means that no trend is significant.

    The test compares the sum of Kendall's S over all series with its normal approximation under chance. Source: Mann,
    Econometrica 13 (1945); for several series Hirsch, Slack and Smith, Water Resources Research 18 (1982). The size is
    Theil and Sen's slope, the median slope between two values.

    Args:
        series: the values of each repeat in the order of their epochs. Series of fewer than three values are ignored.
        level: the two-sided p up to which the trend is significant.
    """
    longer = [np.asarray(values, float) for values in series if len(values) >= 3]
    if not longer:
        return None
    total = sum(float(np.sign(_slopes(values)).sum()) for values in longer)
    variance = sum(len(values) * (len(values) - 1) * (2 * len(values) + 5) / 18 for values in longer)
    p_value = math.erfc((abs(total) - 1) / math.sqrt(2 * variance))  # two-sided, of a normal deviate
    if p_value > level:
        return None
    rises = [float(np.median(_slopes(values))) * (len(values) - 1) / float(np.median(values)) for values in longer]
    return float(np.median(rises))


def _slopes(values: np.ndarray) -> np.ndarray:
    """Return the slopes between all pairs of values, per step of the series."""
    first, second = np.triu_indices(len(values), 1)
    return np.asarray((values[second] - values[first]) / (second - first))


@dataclass(frozen=True)
class Difference:
    """The result of a test whether two groups differ.

    Attributes:
        p_value: the p of the two-sided Mann-Whitney U test.
        decidable: whether this number of repeats can give a significant p at all.
        repeats_needed: the number of repeats on both sides with which p can be significant.
        num_repeats: number of repeats of the smaller group.
        level: the p up to which the difference is significant.
    """

    p_value: float
    decidable: bool
    repeats_needed: int
    num_repeats: int
    level: float

    @property
    def is_significant(self) -> bool:
        return self.decidable and self.p_value <= self.level


def difference(a: Sequence[float], b: Sequence[float], level: float = 0.05) -> Difference:
    """Test whether two groups of repeats differ. The test is exact for few repeats, with ties too.

    Source: Mann and Whitney, Annals of Mathematical Statistics 18 (1947); computed by scipy.stats.mannwhitneyu. With n
    and m values the smallest two-sided p is 2 / C(n + m, n): 0.1 for 3 against 3, so 5% needs four.
    """
    from scipy import stats  # slow to import

    ties = len(set(a) | set(b)) < len(a) + len(b)
    enumerable = math.comb(len(a) + len(b), len(a)) <= _RESAMPLES
    if ties and enumerable and min(len(a), len(b)) > 1:
        method = stats.PermutationMethod(n_resamples=_RESAMPLES)  # enumerates all permutations
        result = stats.mannwhitneyu(np.asarray(a), np.asarray(b), alternative="two-sided", method=method)
    else:
        result = stats.mannwhitneyu(np.asarray(a), np.asarray(b), alternative="two-sided")
    needed = next(n for n in range(1, 100) if smallest_p_value(n, n) <= level)
    decidable = smallest_p_value(len(a), len(b)) <= level
    return Difference(float(result.pvalue), decidable, needed, min(len(a), len(b)), level)


def smallest_p_value(n: int, m: int) -> float:
    """Return the smallest p of two groups of n and m values, when all values of one exceed all values of the other."""
    return min(1.0, 2 / math.comb(n + m, n))
