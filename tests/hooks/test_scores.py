"""Timers record the score that the user names, and accuracy if the user names none."""

import pytest
from tests.hooks.tiny import loader

import laptime

BITS = {"metric": "val/bpc", "name": "bits per character", "unit": "bits/char", "direction": "min"}
BITS_RECORD = {"name": "bits per character", "unit": "bits/char", "is_maximized": False}
ACCURACY_RECORD = {"name": "accuracy", "unit": "%", "is_maximized": True}
QUIET = {"dir": "run", "config": {"lr": 0.1}, "seed": 1, "peak": False}


def test_lap_timer_records_the_named_metric(tiny, lap_timer, timed):
    score = {"metric": "val_loss", "name": "cross entropy", "direction": "min"}
    trainer = tiny.fit(lap_timer(score=score), num_val=2)
    trainer.test(trainer.lightning_module, loader(1), verbose=False)
    result = timed.record["result"]
    assert result["score"] == {"name": "cross entropy", "unit": "", "is_maximized": False}
    assert result["val_score"] == result["val_loss"] is not None
    assert result["test_score"] == result["test_loss"] is not None
    assert timed.column("val_score") == timed.column("val_loss")
    assert f"val cross entropy {result['val_score']:#.4g}" in timed.lines[2]
    assert timed.warnings == []


def test_without_a_name_accuracy_is_the_score(tiny, lap_timer, timed):
    trainer = tiny.fit(lap_timer())
    assert timed.record["result"]["score"] is None
    trainer.test(trainer.lightning_module, loader(1), verbose=False)
    result = timed.record["result"]
    assert result["score"] == ACCURACY_RECORD
    assert result["test_score"] == result["test_accuracy"] == 0.5


def test_an_accuracy_with_a_name_of_its_own_is_the_accuracy(tiny, lap_timer, timed):
    score = {"metric": "test_acc", "name": "accuracy", "unit": "%", "direction": "max"}
    trainer = tiny.fit(lap_timer(score=score))
    trainer.test(trainer.lightning_module, loader(1), verbose=False)
    result = timed.record["result"]
    assert result["score"] == ACCURACY_RECORD and result["test_score"] == result["test_accuracy"] == 0.5
    assert timed.warnings == []


def test_a_metric_that_was_not_logged_gets_a_warning(tiny, lap_timer, timed):
    tiny.fit(lap_timer(score=BITS), num_val=2)
    (warning,) = timed.warnings
    assert "result.val_score is skipped: the training logged no val/bpc, which score= names" in warning
    assert timed.record["result"]["val_score"] is None and "val/bpc" in timed.record["missing"]["result.val_score"]


def test_a_loop_notes_the_score_under_its_name(timed):
    with laptime.laps(loader(2), score=BITS | {"metric": "val_bpc"}, **QUIET) as laps:
        for epoch in range(3):
            for _ in laps:
                pass
            laps.note(val_bpc=2.0 - epoch / 4, train_bpc=1.0)
        laps.note(test_bpc=1.75)
    assert timed.column("val_score") == [2.0, 1.75, 1.5] and timed.column("train_score") == [1.0] * 3
    result = timed.record["result"]
    assert (result["score"], result["val_score"], result["test_score"]) == (BITS_RECORD, 1.5, 1.75)
    assert result["val_accuracy"] is None and timed.warnings == []
    assert "train bits per character 1.000  val bits per character 1.500" in timed.lines[2]


def test_a_loop_that_notes_accuracies_is_scored_by_them(timed):
    with laptime.laps(loader(2), **QUIET) as laps:
        for _ in range(2):
            for _ in laps:
                pass
            laps.note(val_accuracy=0.5)
    assert timed.record["result"]["score"] == ACCURACY_RECORD and timed.column("val_score") == [0.5] * 2
    assert not any("accuracy" in line for line in timed.lines)


@pytest.mark.unit
def test_a_wrong_score_is_refused_before_the_training():
    for timer in (laptime.LapTimer, laptime.Laps):
        with pytest.raises(ValueError, match=r"^score: has no 'direction'\."):
            timer(every=2, score={"metric": "val/bpc"})
