"""Faster but wrong is not faster: whether two groups learn the same."""

import math
from dataclasses import dataclass
from enum import Enum, auto
from statistics import median
from typing import Literal

from laptime.analysis.group import Group

# Two-sided 95% of a normal distribution.
_Z = 1.96

# Of `result` in run.json.
Figure = Literal["test_accuracy", "val_accuracy", "train_loss"]


class Verdict(Enum):
    """Whether two groups learn the same; UNKNOWN: what was measured can't tell."""

    AGREES = auto()
    DIFFERS = auto()
    UNKNOWN = auto()


@dataclass(frozen=True)
class Shift:
    """The median of a figure is another: by so much more than the baseline's."""

    figure: Figure
    by: float


@dataclass(frozen=True)
class Scatter:
    """The repeats differ more than the baseline's do: the largest value is so much more than the smallest."""

    figure: Figure
    spread: float


@dataclass(frozen=True)
class NoTestAccuracy:
    """Some of the repeats have no test accuracy, which the baseline has."""

    num_missing: int
    num_repeats: int


@dataclass(frozen=True)
class Agreement:
    """Whether a group learns the same as its baseline.

    Attributes:
        verdict: whether it does.
        details: in what they differ. Where the verdict is UNKNOWN: differences that one repeat each can't judge.
    """

    verdict: Verdict
    details: tuple[Shift | Scatter | NoTestAccuracy, ...] = ()


def agreement(group: Group, baseline: Group) -> Agreement:
    """Whether accuracy and loss agree with the baseline's within what repeats and a finite test set leave open.

    A difference of accuracies counts where it exceeds the spread of the repeats and what the size of the test set
    leaves open (1.96 standard errors of the difference of two shares); one of final training losses where it exceeds
    the spread of the repeats, of which one repeat has none. Spread is largest less smallest: the wider of the two
    groups', but no more than three times the narrower, or repeats that went wrong would excuse themselves. Repeats that
    went wrong are marked too where the medians agree, and so are those without a figure.

    Where the size of the test set is not known, the spread of the repeats decides alone; with one repeat each nothing
    does. So it is with validation accuracies, which are compared where neither group has a test accuracy and Laptime
    did not train both.
    """
    found: list[Shift | Scatter | NoTestAccuracy] = []
    undecided: list[Shift] = []
    is_known = False
    here, there = group.values("result", "test_accuracy"), baseline.values("result", "test_accuracy")
    num_missing = group.num_seeds - len(here) if there else 0
    figure: Figure = "test_accuracy"
    num_test = min(group.first.dataset.num_test or 0, baseline.first.dataset.num_test or 0)
    is_own = group.first.record.is_laptime_training and baseline.first.record.is_laptime_training
    if not (here or there or is_own):
        figure, num_test = "val_accuracy", 0
        here, there = group.values("result", figure), baseline.values("result", figure)
    if here and there:
        if num_test == 0 and len(here) == len(there) == 1:
            undecided.append(Shift(figure, here[0] - there[0]))
        else:
            is_known = True
            variance = sum(max(share * (1 - share), 0.0) for share in (median(here), median(there)))
            found += _compare(figure, here, there, _Z * math.sqrt(variance / num_test) if num_test else 0.0)
    here, there = group.values("result", "train_loss"), baseline.values("result", "train_loss")
    if len(here) > 1 and len(there) > 1:
        is_known = True
        found += _compare("train_loss", here, there, 0.0)
    if num_missing > 0:
        found.append(NoTestAccuracy(num_missing, group.num_seeds))
    if found:
        return Agreement(Verdict.DIFFERS, tuple(found))
    if undecided:
        return Agreement(Verdict.UNKNOWN, tuple(undecided))
    return Agreement(Verdict.AGREES if is_known else Verdict.UNKNOWN)


def _compare(figure: Figure, here: list[float], there: list[float], floor: float) -> list[Shift | Scatter]:
    difference = median(here) - median(there)
    narrow, wide = sorted([_spread(here), _spread(there)])
    if min(len(here), len(there)) == 1:  # which has no spread to compare with
        narrow = wide
    if abs(difference) > max(floor, min(wide, 3 * narrow)):
        return [Shift(figure, difference)]
    if floor and _spread(here) > 5 * max(floor, _spread(there)):
        return [Scatter(figure, _spread(here))]
    return []


def _spread(values: list[float]) -> float:
    return max(values) - min(values)
