"""Percentiles, and how many values they need."""

import pytest

from laptime.lap.percentile import percentile

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("q", "needed"), [(50, 1), (95, 20), (99, 100)])
def test_percentile_of_too_few_values_is_none(q, needed):
    assert percentile([1.0] * (needed - 1), q) is None
    assert percentile([1.0] * needed, q) == 1.0


def test_percentile_is_interpolated():
    assert percentile([float(number) for number in range(100)], 99) == pytest.approx(98.01)
