"""Intervals of 95% hold the truth in 95% of all cases."""

import numpy as np
import pytest

from laptime.analysis.statistics import ratio_interval


def _noise(rng: np.random.Generator, kind: str, num: int) -> np.ndarray:
    """Relative differences of repeats: symmetric, skewed to the slow side, or with a slow one now and then."""
    if kind == "skewed":
        return -rng.gamma(2, 0.02, num)
    normal = rng.normal(0, 0.03, num)
    return normal - (rng.random(num) < 0.1) * rng.exponential(0.3, num) if kind == "outliers" else normal


REPEATS = [(5, "normal"), (5, "skewed"), (5, "outliers"), (8, "normal")]


def _coverage(num_repeats: int, kind: str, num_sweeps: int, rng: np.random.Generator) -> float:
    """Share of sweeps whose interval holds the true ratio."""
    truth, covered = 1.7, 0
    for _ in range(num_sweeps):
        fast = truth * np.exp(_noise(rng, kind, num_repeats))
        slow = np.exp(_noise(rng, kind, num_repeats))
        found = ratio_interval(fast.tolist(), slow.tolist())
        assert found is not None
        covered += found.low <= truth <= found.high
    return covered / num_sweeps


@pytest.mark.unit
@pytest.mark.parametrize(("num_repeats", "kind"), REPEATS)
def test_intervals_cover_a_known_truth_as_often_as_they_say(num_repeats, kind):
    # 95%, give or take three standard errors of 250 sweeps.
    assert 0.909 <= _coverage(num_repeats, kind, 250, np.random.default_rng(7)) <= 0.991


@pytest.mark.soak
@pytest.mark.parametrize(("num_repeats", "kind"), REPEATS)
def test_intervals_cover_a_known_truth_in_many_sweeps(num_repeats, kind):
    # Of so few repeats they are up to two points too wide; besides, four standard errors of 4,000 sweeps. Other numbers
    # in every run.
    rng = np.random.default_rng()
    assert abs(_coverage(num_repeats, kind, 4000, rng) - 0.95) <= 0.02 + 4 * 0.0034, rng.bit_generator.seed_seq
