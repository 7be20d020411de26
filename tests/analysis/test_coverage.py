"""95% intervals cover the true value in 95% of cases."""

import numpy as np
import pytest

from laptime.analysis.statistics import ratio_interval


def _noise(rng: np.random.Generator, kind: str, num: int) -> np.ndarray:
    """Relative noise of repeats: normal, skewed to the slow side, or with occasional slow outliers."""
    if kind == "skewed":
        return -rng.gamma(2, 0.02, num)
    normal = rng.normal(0, 0.03, num)
    return normal - (rng.random(num) < 0.1) * rng.exponential(0.3, num) if kind == "outliers" else normal


REPEATS = [(5, "normal"), (5, "skewed"), (5, "outliers"), (8, "normal")]


def _coverage(num_repeats: int, kind: str, num_sweeps: int, rng: np.random.Generator) -> float:
    """Fraction of sweeps whose interval contains the true ratio."""
    truth, covered = 1.7, 0
    for _ in range(num_sweeps):
        fast = truth * np.exp(_noise(rng, kind, num_repeats))
        slow = np.exp(_noise(rng, kind, num_repeats))
        interval = ratio_interval(fast.tolist(), slow.tolist())
        assert interval is not None
        covered += interval.low <= truth <= interval.high
    return covered / num_sweeps


@pytest.mark.unit
@pytest.mark.parametrize(("num_repeats", "kind"), REPEATS)
def test_intervals_have_their_nominal_coverage(num_repeats, kind):
    # 95%, give or take three standard errors of 250 sweeps.
    assert 0.909 <= _coverage(num_repeats, kind, 250, np.random.default_rng(7)) <= 0.991


@pytest.mark.soak
@pytest.mark.parametrize(("num_repeats", "kind"), REPEATS)
def test_intervals_have_their_nominal_coverage_in_many_sweeps(num_repeats, kind):
    # Coverage with few repeats is off by up to two points. Tolerance: that, and four standard errors of 4,000 sweeps.
    # Every run uses another seed.
    rng = np.random.default_rng()
    assert abs(_coverage(num_repeats, kind, 4000, rng) - 0.95) <= 0.02 + 4 * 0.0034, rng.bit_generator.seed_seq
