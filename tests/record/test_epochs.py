"""What follows from the epochs of a run."""

import math
from dataclasses import asdict, replace

import pandas as pd
import pytest
from tests.support.records import EPOCH_ROW

from laptime.record.epochs import EpochRow, combine_ranks_frame, combine_rows, last_attempts, time_to_score
from laptime.record.score import ACCURACY

pytestmark = pytest.mark.unit

EPOCHS = [(2.0, 0.5), (4.0, None), (6.0, 0.75), (8.0, math.nan), (10.0, 0.7), (12.0, 0.9)]


@pytest.mark.parametrize(
    ("target", "seconds"), [(0.5, 2.0), (0.51, 6.0), (0.75, 6.0), (0.76, 12.0), (0.9, 12.0), (0.91, None)]
)
def test_the_first_epoch_that_reaches_the_target_counts(target, seconds):
    assert time_to_score(EPOCHS, ACCURACY, target) == seconds


def test_without_epochs_the_target_is_not_reached():
    assert time_to_score([], ACCURACY, 0.5) is None


def test_the_time_before_a_checkpoint_is_not_known():
    assert time_to_score(EPOCHS, ACCURACY, 0.5, first_epoch=1) is None


def rows(times: list[list[float]], attempt: int = 0, first_epoch: int = 0) -> list[EpochRow]:
    """One row per epoch and rank with these times; the first epoch is a warm-up."""
    plain = {key: value for key, value in EPOCH_ROW.items() if key not in ("attempt", "epoch", "rank", "is_warmup")}
    return [
        EpochRow(**plain | {"epoch_time_s": time_s}, attempt=attempt, epoch=epoch, rank=rank, is_warmup=epoch == 0)
        for epoch, of_ranks in enumerate(times, start=first_epoch)
        for rank, time_s in enumerate(of_ranks)
    ]


def test_the_epoch_time_is_that_of_the_slowest_rank():
    (epoch,) = combine_rows(rows([[1.0, 2.0, 1.5]]))
    assert (epoch.epoch_time_s, epoch.num_samples, epoch.samples_per_s) == (2.0, 300, 150.0)
    assert epoch.straggler_delay == pytest.approx(2.0 / 1.5 - 1)
    assert (epoch.cpu_percent, epoch.rss_bytes) == (3 * 99.5, 3 * 2**33)
    assert combine_rows(rows([[1.0]]))[0].straggler_delay is None


def test_num_samples_is_none_if_one_rank_has_not_counted():
    one, other = rows([[1.0, 2.0]])
    written = [one, replace(other, num_samples=None)]
    (epoch,) = combine_rows(written)
    assert epoch.num_samples is None and epoch.samples_per_s is None
    frame = combine_ranks_frame(pd.DataFrame([asdict(row) for row in written]))
    assert frame["num_samples"].isna().all() and frame["samples_per_s"].isna().all()
    assert frame["epoch_time_s"].to_list() == [2.0]


def test_the_last_attempt_at_an_epoch_counts():
    epochs = combine_rows([*rows([[5.0], [9.0]]), *rows([[2.0], [3.0]], attempt=1, first_epoch=1)])
    assert [(epoch.epoch, epoch.epoch_time_s) for epoch in epochs] == [(0, 5.0), (1, 2.0), (2, 3.0)]


def test_frames_and_rows_are_combined_the_same_way():
    written = [*rows([[5.0, 6.0], [9.0, 1.0]]), *rows([[2.0, 2.5], [3.0, 1.0]], attempt=1, first_epoch=1)]
    frame = combine_ranks_frame(last_attempts(pd.DataFrame([asdict(row) for row in written])))
    expected = combine_rows(written)
    assert frame.index.tolist() == [epoch.epoch for epoch in expected]
    for name in ("epoch_time_s", "num_samples", "samples_per_s", "is_warmup"):
        assert frame[name].tolist() == [getattr(epoch, name) for epoch in expected], name
