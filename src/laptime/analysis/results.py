"""Checks whether a group learns as well as its baseline. A faster training that learns less is no improvement."""

import math
from dataclasses import dataclass
from enum import Enum, auto
from statistics import median
from typing import Literal

from laptime.analysis.group import Group, common_score
from laptime.record.score import ACCURACY, Score

# Two-sided 95% quantile of the normal distribution.
_Z = 1.96

# Keys of `result` in run.json.
Metric = Literal["test_score", "val_score", "train_loss"]
# Fewer repeats can have a small spread by chance.
_MIN_REPEATS_FOR_SCATTER = 3


class Verdict(Enum):
    """The verdict whether two groups learn the same.

    UNKNOWN: the measurements can't decide. INCOMPARABLE: the groups, or the repeats of one, have different scores.
    """

    AGREES = auto()
    DIFFERS = auto()
    UNKNOWN = auto()
    INCOMPARABLE = auto()


@dataclass(frozen=True)
class Shift:
    """A difference in the median of a metric. `by` is the group's median minus the baseline's."""

    metric: Metric
    by: float


@dataclass(frozen=True)
class Scatter:
    """A larger spread of the repeats than the baseline's. `spread` is the largest value minus the smallest."""

    metric: Metric
    spread: float


@dataclass(frozen=True)
class NoTestScore:
    """The lack of a test score in some repeats, while the baseline has one."""

    num_missing: int
    num_repeats: int


@dataclass(frozen=True)
class DifferentScores:
    """Scores that can't be compared: those of a group, and those of the baseline."""

    scores: tuple[Score, ...]
    baseline: tuple[Score, ...]


Detail = Shift | Scatter | NoTestScore | DifferentScores


@dataclass(frozen=True)
class Agreement:
    """The result of comparing what a group learns with its baseline.

    Attributes:
        verdict: whether it learns the same.
        details: the differences. If the verdict is UNKNOWN, one repeat of each group can't decide them.
        score: the score of both groups.
    """

    verdict: Verdict
    details: tuple[Detail, ...] = ()
    score: Score = ACCURACY


def agreement(group: Group, baseline: Group) -> Agreement:
    """Compare score and loss with the baseline's, within the spread of the repeats and the error of the test set.

    Accuracies differ if the difference exceeds both the spread of the repeats and the error of a finite test set
    (1.96 standard errors of the difference of two proportions). Final training losses differ if the difference
    exceeds the spread of the repeats, which needs two repeats in each group. The spread is the largest value minus the
    smallest. The wider spread of both groups counts, but at most three times the narrower, so that failed repeats don't
    hide themselves. Repeats that failed to learn or have no test score are reported even if the medians agree.

    If the size of the test set is unknown, only the spread of the repeats decides, and one repeat in each group
    decides nothing. The same holds for all other scores, and for validation accuracies. Validation scores are compared
    if neither group has a test score; accuracies only if Laptime did not run both trainings. Groups with different
    scores are not compared.
    """
    score = common_score([group, baseline])
    if score is None:
        return Agreement(Verdict.INCOMPARABLE, (DifferentScores(group.scores, baseline.scores),))
    differences: list[Detail] = []
    undecided: list[Shift] = []
    is_decided = False
    values, baseline_values = group.values("result", "test_score"), baseline.values("result", "test_score")
    num_missing = group.num_seeds - len(values) if baseline_values else 0
    metric: Metric = "test_score"
    num_test = min(group.first.dataset.num_test or 0, baseline.first.dataset.num_test or 0) if score == ACCURACY else 0
    both_by_laptime = group.first.record.is_laptime_training and baseline.first.record.is_laptime_training
    if not (values or baseline_values or (both_by_laptime and score == ACCURACY)):
        metric, num_test = "val_score", 0
        values, baseline_values = group.values("result", metric), baseline.values("result", metric)
    if values and baseline_values:
        if num_test == 0 and len(values) == len(baseline_values) == 1:
            undecided.append(Shift(metric, values[0] - baseline_values[0]))
        else:
            is_decided = True
            medians = median(values), median(baseline_values)
            variance = sum(max(value * (1 - value), 0.0) for value in medians)
            min_difference = _Z * math.sqrt(variance / num_test) if num_test else 0.0
            has_repeats = min(len(values), len(baseline_values)) >= _MIN_REPEATS_FOR_SCATTER
            can_scatter = bool(min_difference) or (score != ACCURACY and has_repeats)
            differences += _compare(metric, values, baseline_values, min_difference, can_scatter)
    values, baseline_values = group.values("result", "train_loss"), baseline.values("result", "train_loss")
    if len(values) > 1 and len(baseline_values) > 1:
        is_decided = True
        differences += _compare("train_loss", values, baseline_values, 0.0, can_scatter=False)
    if num_missing > 0:
        differences.append(NoTestScore(num_missing, group.num_seeds))
    if differences:
        return Agreement(Verdict.DIFFERS, tuple(differences), score)
    if undecided:
        return Agreement(Verdict.UNKNOWN, tuple(undecided), score)
    return Agreement(Verdict.AGREES if is_decided else Verdict.UNKNOWN, score=score)


def _compare(
    metric: Metric, values: list[float], baseline_values: list[float], min_difference: float, can_scatter: bool
) -> list[Shift | Scatter]:
    difference = median(values) - median(baseline_values)
    narrow, wide = sorted([_spread(values), _spread(baseline_values)])
    if min(len(values), len(baseline_values)) == 1:  # a single repeat has no spread
        narrow = wide
    if abs(difference) > max(min_difference, min(wide, 3 * narrow)):
        return [Shift(metric, difference)]
    if can_scatter and _spread(values) > 5 * max(min_difference, _spread(baseline_values)):
        return [Scatter(metric, _spread(values))]
    return []


def _spread(values: list[float]) -> float:
    return max(values) - min(values)
