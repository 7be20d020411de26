"""Percentiles of durations."""

from collections.abc import Sequence

import numpy as np

# A percentile that fewer values would make up is not given: one in twenty, or in a hundred.
_NEEDED = {50: 1, 95: 20, 99: 100}


def percentile(values: Sequence[float], q: int) -> float | None:
    """The q-th percentile, interpolated linearly; None where there are too few values.

    Args:
        values: any number of them.
        q: 50, 95 or 99.
    """
    return float(np.quantile(np.asarray(values), q / 100)) if len(values) >= _NEEDED[q] else None
