"""What must hold whatever the numbers are, on numbers that Hypothesis makes up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from laptime.analysis.laws import fit, karp_flatt, usl
from laptime.analysis.statistics import difference, ratio, ratio_interval, summarize

pytestmark = pytest.mark.unit

speeds = st.floats(1.0, 1e6)
repeats = st.lists(speeds, min_size=1, max_size=8)
several = st.lists(speeds, min_size=2, max_size=8)
units = st.sampled_from([1e-3, 1 / 60, 60.0, 1e6])
quickly = settings(max_examples=40, deadline=None)


@given(repeats, repeats, units, st.randoms())
def test_ratio_depends_neither_on_order_nor_on_the_unit(a, b, unit, random):
    shuffled = random.sample(a, len(a))
    assert ratio(shuffled, b) == ratio(a, b)
    assert ratio([unit * x for x in a], [unit * x for x in b]) == pytest.approx(ratio(a, b))


@quickly
@given(several, several, units, st.randoms())
def test_interval_holds_what_the_bootstrap_can_give_and_depends_on_neither(a, b, unit, random):
    found = ratio_interval(a, b)
    assert found is not None
    assert min(a) / max(b) * (1 - 1e-9) <= found.low <= found.high <= max(a) / min(b) * (1 + 1e-9)
    assert ratio_interval(random.sample(a, len(a)), random.sample(b, len(b))) == found
    scaled = ratio_interval([unit * x for x in a], [unit * x for x in b])
    assert scaled is not None
    assert (scaled.low, scaled.high) == pytest.approx((found.low, found.high))


@given(st.lists(several, min_size=1, max_size=5))
def test_a_repeat_equal_to_one_that_stands_for_all_moves_no_median(epochs):
    same = [epochs[0]] * 3
    assert summarize(same).median == summarize([*same, epochs[0]]).median == float(np.median(epochs[0]))
    assert summarize(epochs).low == min(map(min, epochs)) and summarize(epochs).high == max(map(max, epochs))
    backwards, forwards = summarize(epochs[::-1]), summarize(epochs)
    assert (backwards.median, backwards.std_epochs) == (forwards.median, forwards.std_epochs)


@given(several, several)
def test_difference_is_scipys_and_the_same_from_either_side(a, b):
    found = difference(a, b)
    if len(set(a + b)) == len(a + b):  # with ties SciPy's default approximates
        assert found.p_value == pytest.approx(stats.mannwhitneyu(a, b).pvalue)
    assert found.p_value == pytest.approx(difference(b, a).p_value)


@given(st.integers(2, 1000), st.floats(0.0, 1.0))
def test_serial_fraction_of_a_fraction_is_that_fraction(world_size, serial):
    assert karp_flatt(1 / (serial + (1 - serial) / world_size), world_size) == pytest.approx(serial, abs=1e-9)


@quickly
@given(
    st.floats(0.01, 0.5),
    st.floats(0.0005, 0.05),
    st.lists(st.floats(-0.05, 0.05), min_size=12, max_size=12),
    st.randoms(),
)
def test_fit_is_least_squares_in_whatever_order(contention, coherency, noise, random):
    sizes = [1, 2, 4, 8, 16, 32] * 2
    speedups = [float(usl(np.array(p), contention, coherency)) * (1 + e) for p, e in zip(sizes, noise, strict=True)]
    found = fit("usl", sizes, speedups)
    assert found is not None and found.r_squared is not None
    order = random.sample(range(12), 12)
    again = fit("usl", [sizes[i] for i in order], [speedups[i] for i in order])
    assert again is not None and again.parameters == found.parameters
    # SciPy's other solver, from another start, finds no better fit.
    p, s = np.array(sizes, float), np.array(speedups)
    other = optimize.least_squares(lambda x: usl(p, *x) - s, x0=[0.3, 0.01], bounds=(0, np.inf), xtol=1e-12, ftol=1e-12)
    own = float(((usl(p, *found.parameters.values()) - s) ** 2).sum())
    assert own <= 2 * other.cost * (1 + 1e-4) + 1e-12


def test_parameter_intervals_are_the_textbooks():
    sizes, speedups = [1, 2, 4, 8, 16] * 2, [1.0, 1.9, 3.3, 5.2, 6.9, 1.0, 1.85, 3.4, 5.0, 7.1]
    found = fit("amdahl", sizes, speedups)
    assert found is not None and found.intervals is not None
    serial = found.parameters["serial"]
    p, s = np.array(sizes[1:5] * 2, float), np.array(speedups[1:5] + speedups[6:])  # one rank says nothing of it
    slope = -(1 - 1 / p) / (serial + (1 - serial) / p) ** 2  # of Amdahl's law by its serial share
    residuals = s - 1 / (serial + (1 - serial) / p)
    error = np.sqrt((residuals**2).sum() / (len(s) - 1) / (slope**2).sum())
    reach = stats.t.ppf(0.975, len(s) - 1) * error
    interval = found.intervals["serial"]
    assert (interval.low, interval.high) == pytest.approx((serial - reach, serial + reach), rel=1e-3)


def test_a_measured_computer_peaks_where_it_was_seen_to():
    # Sun SPARCcenter 2000, SPEC SDM 1991, as in the R package usl (data specsdm91): load and scripts per hour. The
    # measured throughput is largest at 72 and falls from 108 on.
    load = [1, 18, 36, 72, 108, 144, 216]
    throughput = [64.9, 995.9, 1652.4, 1853.2, 1828.9, 1775.0, 1702.2]
    found = fit("usl", load, [value / throughput[0] for value in throughput])
    assert found is not None and found.best_world_size is not None
    best, interval = found.best_world_size
    assert 72 < best < 108 and interval.low <= best <= interval.high
