"""Faster but wrong is not faster: whether two groups learn the same."""

import math
from statistics import median

from laptime.analysis.groups import Group

# Two-sided 95% of a normal distribution.
_Z = 1.96


def agreement(group: Group, baseline: Group) -> str:
    """Whether accuracy and loss agree with the baseline's within what repeats and a finite test set leave open.

    A difference of accuracies counts where it exceeds the spread of the repeats and what the size of the test set
    leaves open (1.96 standard errors of the difference of two shares); one of final training losses where it exceeds
    the spread of the repeats, of which one repeat has none. Spread is largest less smallest: the wider of the two
    groups', but no more than three times the narrower, or repeats that went wrong would excuse themselves. Repeats that
    went wrong are marked too where the medians agree, and so are those without a figure.

    Returns:
        `agrees`, `differs: ...` or `not known: ...`.
    """
    differing, known = [], 0
    here, there = group.values("result", "test_accuracy"), baseline.values("result", "test_accuracy")
    lost = []
    if there and len(here) < group.num_seeds:
        lost = [f"{group.num_seeds - len(here)} of {group.num_seeds} repeats have no test accuracy"]
    if here and there:
        known += 1
        num_test = min(group.first["dataset"]["num_test"] or 1, baseline.first["dataset"]["num_test"] or 1)
        variance = sum(max(share * (1 - share), 0.0) for share in (median(here), median(there))) / num_test
        differing += _compare("test accuracy", here, there, _Z * math.sqrt(variance), 100, "+.2f", " points")
    here, there = group.values("result", "train_loss"), baseline.values("result", "train_loss")
    if len(here) > 1 and len(there) > 1:
        known += 1
        differing += _compare("training loss", here, there, 0.0, 1, "+.4f", "")
    if differing or lost:
        return f"differs: {', '.join([*differing, *lost])}"
    return "agrees" if known else "not known: no accuracy was measured"


def _compare(
    what: str, here: list[float], there: list[float], floor: float, scale: float, form: str, unit: str
) -> list[str]:
    difference = median(here) - median(there)
    narrow, wide = sorted([_spread(here), _spread(there)])
    if min(len(here), len(there)) == 1:  # which has no spread to compare with
        narrow = wide
    if abs(difference) > max(floor, min(wide, 3 * narrow)):
        return [f"{what} {scale * difference:{form}}{unit}"]
    if floor and _spread(here) > 5 * max(floor, _spread(there)):
        return [f"{what} varies by {scale * _spread(here):.2f}{unit}"]
    return []


def _spread(values: list[float]) -> float:
    return max(values) - min(values)
