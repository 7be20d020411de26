"""Faster but wrong is not faster: whether two groups learn the same."""

import math
from statistics import median

from laptime.analysis.groups import Group

# Two-sided 95% of a normal distribution.
_Z = 1.96


def agreement(group: Group, baseline: Group) -> str:
    """Whether accuracy and loss agree with the baseline's within what repeats and a finite test set leave open.

    A difference of accuracies counts where it exceeds the spread of the repeats (largest less smallest, the wider of
    the two groups) and what the size of the test set leaves open (1.96 standard errors of the difference of two
    shares). A difference of final training losses counts where it exceeds the spread of the
    repeats; one repeat has none.

    Returns:
        `agrees`, `differs: ...` or `not known: ...`.
    """
    differing, known = [], 0
    here, there = group.values("result", "test_accuracy"), baseline.values("result", "test_accuracy")
    if _usable(here) and _usable(there):
        known += 1
        difference = median(here) - median(there)
        num_test = min(group.first["dataset"]["num_test"] or 1, baseline.first["dataset"]["num_test"] or 1)
        variance = sum(max(share * (1 - share), 0.0) for share in (median(here), median(there))) / num_test
        if abs(difference) > max(_spread(here), _spread(there), _Z * math.sqrt(variance)):
            differing.append(f"test accuracy {100 * difference:+.2f} points")
    here, there = group.values("result", "train_loss"), baseline.values("result", "train_loss")
    if _usable(here) and _usable(there) and len(here) > 1 and len(there) > 1:
        known += 1
        difference = median(here) - median(there)
        if abs(difference) > max(_spread(here), _spread(there)):
            differing.append(f"training loss {difference:+.4f}")
    if differing:
        return f"differs: {', '.join(differing)}"
    return "agrees" if known else "not known: no accuracy was measured"


def _usable(values: list[float]) -> bool:
    return bool(values) and all(math.isfinite(value) for value in values)


def _spread(values: list[float]) -> float:
    return max(values) - min(values)
