"""What follows from the epochs of a run."""

import math

import pytest

from laptime.record.epochs import time_to_accuracy

pytestmark = pytest.mark.unit

EPOCHS = [(2.0, 0.5), (4.0, None), (6.0, 0.75), (8.0, math.nan), (10.0, 0.7), (12.0, 0.9)]


@pytest.mark.parametrize(
    ("target", "seconds"), [(0.5, 2.0), (0.51, 6.0), (0.75, 6.0), (0.76, 12.0), (0.9, 12.0), (0.91, None)]
)
def test_the_first_epoch_that_reaches_the_target_counts(target, seconds):
    assert time_to_accuracy(EPOCHS, target) == seconds


def test_without_epochs_the_target_is_not_reached():
    assert time_to_accuracy([], 0.5) is None


def test_the_time_before_a_checkpoint_is_not_known():
    assert time_to_accuracy(EPOCHS, 0.5, first_epoch=1) is None
