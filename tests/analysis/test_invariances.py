"""Invariants, tested with Hypothesis."""

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
def test_ratio_is_independent_of_order_and_unit(a, b, unit, random):
    shuffled = random.sample(a, len(a))
    assert ratio(shuffled, b) == ratio(a, b)
    assert ratio([unit * x for x in a], [unit * x for x in b]) == pytest.approx(ratio(a, b))


@quickly
@given(several, several, units, st.randoms())
def test_interval_is_within_the_data_and_independent_of_order_and_unit(a, b, unit, random):
    interval = ratio_interval(a, b)
    assert interval is not None
    assert min(a) / max(b) * (1 - 1e-9) <= interval.low <= interval.high <= max(a) / min(b) * (1 + 1e-9)
    assert ratio_interval(random.sample(a, len(a)), random.sample(b, len(b))) == interval
    scaled = ratio_interval([unit * x for x in a], [unit * x for x in b])
    assert scaled is not None
    assert (scaled.low, scaled.high) == pytest.approx((interval.low, interval.high))


@quickly
@given(several, several)
def test_interval_equals_scipys_bootstrap(a, b):
    def ratio_of_medians(a, b, axis):
        return np.median(a, axis=axis) / np.median(b, axis=axis)

    samples = (np.sort(a), np.sort(b))  # the interval is independent of the order of the values
    rng = np.random.default_rng(0)
    expected = stats.bootstrap(samples, ratio_of_medians, method="percentile", rng=rng).confidence_interval
    interval = ratio_interval(a, b)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=1e-12)


@given(st.lists(several, min_size=1, max_size=5))
def test_a_repeat_equal_to_the_others_does_not_change_the_median(epochs):
    same = [epochs[0]] * 3
    assert summarize(same).median == summarize([*same, epochs[0]]).median == float(np.median(epochs[0]))
    assert summarize(epochs).low == min(map(min, epochs)) and summarize(epochs).high == max(map(max, epochs))
    backwards, forwards = summarize(epochs[::-1]), summarize(epochs)
    assert (backwards.median, backwards.std_epochs) == (forwards.median, forwards.std_epochs)


@given(several, several)
def test_difference_equals_scipy_and_is_symmetric(a, b):
    result = difference(a, b)
    if len(set(a + b)) == len(a + b):  # with ties SciPy's default approximates
        assert result.p_value == pytest.approx(stats.mannwhitneyu(a, b).pvalue)
    assert result.p_value == pytest.approx(difference(b, a).p_value)


@given(st.integers(2, 1000), st.floats(0.0, 1.0))
def test_karp_flatt_inverts_amdahls_law(world_size, serial):
    assert karp_flatt(1 / (serial + (1 - serial) / world_size), world_size) == pytest.approx(serial, abs=1e-9)


@quickly
@given(
    st.floats(0.01, 0.5),
    st.floats(0.0005, 0.05),
    st.lists(st.floats(-0.05, 0.05), min_size=12, max_size=12),
    st.randoms(),
)
def test_fit_is_least_squares_in_any_order(contention, coherency, noise, random):
    sizes = [1, 2, 4, 8, 16, 32] * 2
    speedups = [float(usl(np.array(p), contention, coherency)) * (1 + e) for p, e in zip(sizes, noise, strict=True)]
    fitted = fit("usl", sizes, speedups)
    assert fitted is not None and fitted.r_squared is not None
    order = random.sample(range(12), 12)
    shuffled = fit("usl", [sizes[i] for i in order], [speedups[i] for i in order])
    assert shuffled is not None and shuffled.parameters == fitted.parameters
    # SciPy's other solver, from another start, finds no better fit.
    p, s = np.array(sizes, float), np.array(speedups)
    other = optimize.least_squares(lambda x: usl(p, *x) - s, x0=[0.3, 0.01], bounds=(0, np.inf), xtol=1e-12, ftol=1e-12)
    sum_of_squares = float(((usl(p, *fitted.parameters.values()) - s) ** 2).sum())
    assert sum_of_squares <= 2 * other.cost * (1 + 1e-4) + 1e-12


def test_parameter_intervals_equal_the_textbook_formula():
    sizes, speedups = [1, 2, 4, 8, 16] * 2, [1.0, 1.9, 3.3, 5.2, 6.9, 1.0, 1.85, 3.4, 5.0, 7.1]
    fitted = fit("amdahl", sizes, speedups)
    assert fitted is not None and fitted.intervals is not None
    serial = fitted.parameters["serial"]
    p, s = np.array(sizes[1:5] * 2, float), np.array(speedups[1:5] + speedups[6:])  # without one rank
    slope = -(1 - 1 / p) / (serial + (1 - serial) / p) ** 2  # derivative of Amdahl's law by the serial fraction
    residuals = s - 1 / (serial + (1 - serial) / p)
    error = np.sqrt((residuals**2).sum() / (len(s) - 1) / (slope**2).sum())
    reach = stats.t.ppf(0.975, len(s) - 1) * error
    interval = fitted.intervals["serial"]
    assert (interval.low, interval.high) == pytest.approx((serial - reach, serial + reach), rel=1e-3)


def test_the_law_peaks_near_the_measured_maximum_of_a_real_machine():
    # Sun SPARCcenter 2000, SPEC SDM 1991, as in the R package usl (data specsdm91): load and scripts per hour. The
    # measured throughput is largest at 72 and falls from 108 on.
    load = [1, 18, 36, 72, 108, 144, 216]
    throughput = [64.9, 995.9, 1652.4, 1853.2, 1828.9, 1775.0, 1702.2]
    fitted = fit("usl", load, [value / throughput[0] for value in throughput])
    assert fitted is not None and fitted.best_world_size is not None
    best, interval = fitted.best_world_size
    assert 72 < best < 108 and interval.low <= best <= interval.high
