"""Statistics against values computed by hand, and invariants."""

import random

import numpy as np
import pytest

from laptime.analysis.statistics import (
    Interval,
    difference,
    ratio,
    ratio_interval,
    smallest_p_value,
    summarize,
    trend,
)

pytestmark = pytest.mark.unit


def test_summary_by_hand():
    summary = summarize([[1.0, 2.0, 3.0], [4.0, 5.0, 9.0], [7.0]])
    assert (summary.num_repeats, summary.median, summary.low, summary.high) == (3, 5.0, 1.0, 9.0)
    assert summary.std_repeats == pytest.approx(
        (((2 - 14 / 3) ** 2 + (5 - 14 / 3) ** 2 + (7 - 14 / 3) ** 2) / 2) ** 0.5
    )
    # Standard deviations 1 and sqrt(7); the third repeat has a single value.
    assert summary.std_epochs == pytest.approx((1 + 7**0.5) / 2)


def test_one_repeat_has_no_standard_deviation():
    summary = summarize([[2.0]])
    assert (summary.median, summary.std_repeats, summary.std_epochs) == (2.0, None, None)


def test_a_repeat_without_values_is_an_error():
    with pytest.raises(ValueError, match="needs a value"):
        summarize([[1.0], []])


def test_ratio_is_of_medians():
    assert ratio([2.0, 4.0, 100.0], [1.0, 2.0, 3.0]) == 2.0


def test_interval_of_constant_groups_is_a_point():
    assert ratio_interval([4.0, 4.0, 4.0], [2.0, 2.0]) == Interval(2.0, 2.0)


def test_one_repeat_has_no_interval():
    assert ratio_interval([4.0], [2.0, 2.1]) is None


def test_interval_contains_the_ratio_and_is_independent_of_order_and_unit():
    fast, slow = [10.0, 10.4, 9.7, 10.1], [5.0, 5.3, 4.9, 5.1]
    interval = ratio_interval(fast, slow)
    assert interval is not None and interval.low <= ratio(fast, slow) <= interval.high
    shuffled = random.Random(1).sample(fast, len(fast))
    assert ratio_interval(shuffled, slow[::-1]) == interval
    scaled = ratio_interval([1000 * x for x in fast], [1000 * x for x in slow])
    assert scaled is not None and (scaled.low, scaled.high) == pytest.approx((interval.low, interval.high))


def test_a_repeat_equal_to_the_others_changes_nothing():
    before, after = ratio_interval([3.0, 3.0], [1.5, 1.5]), ratio_interval([3.0, 3.0, 3.0], [1.5, 1.5])
    assert before == after == Interval(2.0, 2.0)


@pytest.mark.parametrize(("n", "p"), [(1, 1.0), (2, 2 / 6), (3, 2 / 20), (4, 2 / 70), (5, 2 / 252)])
def test_smallest_p_value_counts_the_arrangements(n, p):
    assert smallest_p_value(n, n) == pytest.approx(p)
    separated = difference(list(range(n)), list(range(10, 10 + n)))
    assert separated.p_value == pytest.approx(p)


def test_significance_needs_four_repeats_on_both_sides():
    three = difference([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    assert not three.decidable and three.repeats_needed == 4
    assert difference([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]).decidable


def test_a_trend_by_hand():
    # Four falling epochs in each of three repeats: S = -18, variance 26, z = -3.33, p = 0.0009.
    falling = [[1.3, 1.2, 1.1, 1.0]] * 3
    assert trend(falling) == pytest.approx(-0.3 / 1.15)
    assert trend([values[::-1] for values in falling]) == pytest.approx(0.3 / 1.15)
    # One repeat of four epochs is not enough: z = -1.70, p = 0.09.
    assert trend(falling[:1]) is None
    assert trend([[1.0], [2.0, 1.0]]) is None


def test_noise_is_rarely_a_trend():
    rng = np.random.default_rng(3)
    trends = [trend(rng.normal(1, 0.05, (3, 10)).tolist()) for _ in range(500)]
    assert sum(value is not None for value in trends) <= 15  # 1 of 100 by chance


def test_ties_are_enumerated():
    # 2 of 35 pairs of arrangements are as extreme: by hand.
    assert difference([1.0, 2.0, 3.0, 4.0], [4.0, 5.0, 6.0, 7.0]).p_value == pytest.approx(4 / 70)
    assert difference([1.0] * 4, [2.0] * 4).p_value == pytest.approx(2 / 70)
