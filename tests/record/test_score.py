"""How values of scores are shown and compared, and that accuracy is the score of old records."""

import math
from pathlib import Path
from typing import Any

import pytest
from msgspec import to_builtins
from tests.support.records import new_record, update, write_record

from laptime.record.run_record import RunRecord
from laptime.record.score import ACCURACY, BITS_PER_CHARACTER, Score

pytestmark = pytest.mark.unit

LOSS = Score(name="loss", is_maximized=False)
ERROR = Score(name="error rate", unit="%", is_maximized=False)


@pytest.mark.parametrize(
    ("score", "value", "text"),
    [
        (ACCURACY, 0.98126, "98.13%"),
        (BITS_PER_CHARACTER, 1.88, "1.880 bits/char"),
        (LOSS, 0.0, "0.000"),
        (LOSS, -0.012345, "-0.01235"),
        (LOSS, 1e-7, "1.000e-07"),
        (LOSS, 999.96, "1,000"),
        (LOSS, 123456.7, "123,457"),
    ],
)
def test_a_value_has_four_digits_and_its_unit(score, value, text):
    assert score.text(value) == text


def test_percent_is_shown_of_fractions_alone():
    assert (ACCURACY.factor, BITS_PER_CHARACTER.factor) == (100, 1)
    assert (ACCURACY.target_text(0.975), BITS_PER_CHARACTER.target_text(1.9)) == ("97.5%", "1.9 bits/char")
    assert (ACCURACY.spread_text(0.87), BITS_PER_CHARACTER.spread_text(0.3)) == ("87.00 points", "0.3000 bits/char")
    assert (ACCURACY.axis_label, LOSS.axis_label) == ("accuracy (%)", "loss")
    assert BITS_PER_CHARACTER.axis_label == "bits per character (bits/char)"


@pytest.mark.parametrize(
    ("score", "difference", "text"),
    [
        (ACCURACY, -0.0085, "-0.85 points"),
        (ERROR, 0.0085, "+0.85 points (worse)"),
        (BITS_PER_CHARACTER, 0.12, "+0.1200 bits/char (worse)"),
        (BITS_PER_CHARACTER, -0.12, "-0.1200 bits/char (better)"),
        (Score(name="BLEU", is_maximized=True), 2.5, "+2.500 (better)"),
    ],
)
def test_a_difference_says_what_is_better(score, difference, text):
    assert score.difference_text(difference) == text


def test_the_direction_decides_what_reaches_a_target():
    assert ACCURACY.has_reached(0.9, 0.9) and not ACCURACY.has_reached(0.89, 0.9)
    assert BITS_PER_CHARACTER.has_reached(1.9, 1.9) and not BITS_PER_CHARACTER.has_reached(1.91, 1.9)
    assert not ACCURACY.has_reached(math.nan, 0.9) and not BITS_PER_CHARACTER.has_reached(math.nan, 1.9)


def test_a_description_has_unit_and_direction():
    assert BITS_PER_CHARACTER.description == "bits per character (bits/char, lower is better)"
    assert LOSS.description == "loss (lower is better)"


def test_a_tag_can_be_part_of_a_path():
    assert [score.tag for score in (ACCURACY, BITS_PER_CHARACTER)] == ["accuracy", "bits_per_character"]
    assert Score(name="F1 / macro", is_maximized=True).tag == "f1_macro"
    assert Score(name="%", is_maximized=True).tag == "score"


@pytest.mark.parametrize(("name", "unit"), [("", ""), (" ", ""), ("a\x1b[2J", ""), ("a", "b\n")])
def test_a_name_that_a_terminal_could_obey_is_refused(name, unit):
    with pytest.raises(ValueError, match="score"):
        Score(name=name, unit=unit, is_maximized=True)


def read_with(folder: Path, **result: Any) -> RunRecord:
    record = new_record()
    update(record, "result", **result)
    write_record(folder, record)
    return RunRecord.read(folder)


def test_accuracy_is_the_score_of_an_old_record(tmp_path):
    record = new_record()
    update(record, "result", val_accuracy=0.8, test_accuracy=0.9, time_to_accuracy=3.0)
    for key in ("score", "train_score", "val_score", "test_score", "time_to_score"):
        del record["result"][key]
    write_record(tmp_path, record)
    result = RunRecord.read(tmp_path).result
    assert (result.score, result.train_score, result.val_score) == (ACCURACY, None, 0.8)
    assert (result.test_score, result.time_to_score) == (0.9, 3.0)


def test_a_record_keeps_its_score(tmp_path):
    score = to_builtins(BITS_PER_CHARACTER)
    result = read_with(tmp_path, score=score, val_score=1.9, val_accuracy=0.4).result
    assert (result.score, result.val_score, result.train_score) == (BITS_PER_CHARACTER, 1.9, None)


def test_without_accuracies_no_score_is_known(tmp_path):
    record = read_with(tmp_path, val_loss=0.1)
    assert record.result.score is None and record.score == ACCURACY


@pytest.mark.parametrize("name", ["", "a\nb", 3])
def test_a_damaged_score_is_named(name, tmp_path):
    with pytest.raises(ValueError, match=r"damaged: result\.score"):
        read_with(tmp_path, score={"name": name, "unit": "", "is_maximized": True})


@pytest.mark.parametrize(
    ("measure", "target"),
    [({"target_accuracy": 0.9}, 0.9), ({"target_accuracy": None, "target_score": 1.9}, 1.9), ({}, None)],
)
def test_the_target_is_that_of_either_key(measure, target):
    assert RunRecord(config={"measure": measure}).target == target
