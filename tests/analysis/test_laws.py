"""Scaling laws against values computed by hand, and fits of known parameters."""

import math

import numpy as np
import pytest

from laptime.analysis.laws import amdahl, efficiency, fit, karp_flatt, peak, speedup, usl

pytestmark = pytest.mark.unit


def test_speedup_and_efficiency_by_hand():
    assert speedup(30_000, 20_000) == 1.5
    assert efficiency(1.5, 2) == 0.75


@pytest.mark.parametrize(
    ("measured", "world_size", "serial"),
    [(1.95, 2, 0.0256410), (3.3, 5, 0.1287879), (4.0, 8, 1 / 7), (2.0, 2, 0.0), (1.0, 4, 1.0)],
)
def test_karp_flatt_by_hand(measured, world_size, serial):
    assert karp_flatt(measured, world_size) == pytest.approx(serial, abs=1e-6)


def test_one_rank_has_no_serial_fraction():
    assert karp_flatt(1.0, 1) is None


def test_models_by_hand():
    assert amdahl(np.array([1, 4]), 0.2).tolist() == pytest.approx([1.0, 2.5])
    assert usl(np.array([1, 4]), 0.1, 0.01).tolist() == pytest.approx([1.0, 4 / 1.42])
    assert peak(0.1, 0.001) == pytest.approx(30.0)
    assert peak(0.1, 0.0) == math.inf


def test_karp_flatt_of_amdahls_law_is_its_serial_fraction():
    for p in (2, 3, 8, 64):
        assert karp_flatt(float(amdahl(np.array(p), 0.07)), p) == pytest.approx(0.07)


@pytest.mark.parametrize("serial", [0.0, 0.05, 0.3])
def test_the_fit_recovers_amdahls_parameter(serial):
    sizes = [1, 2, 4, 8]
    fitted = fit("amdahl", sizes, amdahl(np.array(sizes), serial).tolist())
    assert fitted is not None
    assert fitted.parameters["serial"] == pytest.approx(serial, abs=1e-4)
    assert fitted.r_squared == pytest.approx(1, abs=1e-6)


def test_the_fit_recovers_the_parameters_and_best_world_size_of_usl():
    sizes = [1, 2, 4, 8, 16, 32]
    fitted = fit("usl", sizes, usl(np.array(sizes), 0.05, 0.002).tolist())
    assert fitted is not None
    assert (fitted.parameters["contention"], fitted.parameters["coherency"]) == pytest.approx((0.05, 0.002), rel=1e-3)
    assert fitted.best_world_size is not None
    best, interval = fitted.best_world_size
    assert best == pytest.approx(math.sqrt(0.95 / 0.002), rel=1e-2)
    assert interval.low <= best <= interval.high


def test_a_best_world_size_far_beyond_the_data_is_not_reported():
    sizes = [1, 2, 4]
    fitted = fit("usl", sizes, [1.0, 1.9, 3.5])
    assert fitted is not None and fitted.best_world_size is None


def test_two_world_sizes_are_not_fitted():
    assert fit("amdahl", [1, 2, 2], [1.0, 1.9, 1.8]) is None


def test_the_fit_does_not_depend_on_the_order_of_the_runs():
    forward, backward = fit("usl", [1, 2, 4], [1.0, 1.8, 2.9]), fit("usl", [4, 2, 1], [2.9, 1.8, 1.0])
    assert forward is not None and backward is not None
    assert forward.parameters == pytest.approx(backward.parameters, rel=1e-4, abs=1e-8)


def test_as_many_parameters_as_speedups_give_no_interval():
    fitted = fit("usl", [1, 2, 4], [1.0, 1.1, 1.0])  # for one rank, every law gives 1
    assert fitted is not None and fitted.intervals is None and fitted.best_world_size is None
    assert fitted.interval(8) is None
    amdahl_fit = fit("amdahl", [1, 2, 4], [1.0, 1.1, 1.0])
    assert amdahl_fit is not None and amdahl_fit.intervals is not None


def test_superlinear_speedups_are_within_their_interval():
    fitted = fit("usl", [1, 2, 4, 8], [1.0, 2.2, 4.6, 9.5])
    assert fitted is not None
    interval, expected = fitted.interval(16), float(fitted.predict([16])[0])
    assert interval is not None and interval.low <= expected <= interval.high


def test_the_baselines_error_widens_the_interval_of_a_projection():
    sizes, speedups = [1, 2, 4, 8, 16], usl(np.array([1, 2, 4, 8, 16]), 0.05, 0.002).tolist()
    exact, noisy = (fit("usl", sizes, speedups, error) for error in (0.0, 0.1))
    assert exact is not None and noisy is not None
    narrow, wide = exact.interval(32), noisy.interval(32)
    assert narrow is not None and wide is not None
    assert narrow.high / narrow.low < 1.01
    assert wide.high / wide.low == pytest.approx(math.exp(2 * 1.96 * 0.1), rel=0.1)
