"""Percentiles of durations."""

from collections.abc import Sequence

import numpy as np

# Minimum number of values for each percentile.
_MIN_VALUES = {50: 1, 95: 20, 99: 100}


def percentile(values: Sequence[float], q: int) -> float | None:
    """Return the q-th percentile, interpolated linearly; None: too few values.

    Args:
        q: the percentile: 50, 95 or 99.
    """
    return float(np.quantile(np.asarray(values), q / 100)) if len(values) >= _MIN_VALUES[q] else None
