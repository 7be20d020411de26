"""The dictionary with which a user names the score of a training."""

import math

import pytest

from laptime.record.logged_score import LoggedScore
from laptime.record.score import Score

pytestmark = pytest.mark.unit


def logged(metric: str, unit: str = "") -> LoggedScore:
    return LoggedScore.of({"metric": metric, "direction": "min", "unit": unit})


def test_a_score_is_made_from_a_dictionary():
    settings = {"metric": "val/bpc", "name": "bits per character", "unit": "bits/char", "direction": "min"}
    score = Score(name="bits per character", unit="bits/char", is_maximized=False)
    assert LoggedScore.of(settings) == LoggedScore(score, "val/bpc")


@pytest.mark.parametrize(
    ("metric", "name"), [("val/bpc", "bpc"), ("val_f1_macro", "f1 macro"), ("bpc", "bpc"), ("value", "value")]
)
def test_the_name_is_the_metric_without_its_prefix(metric, name):
    assert LoggedScore.of({"metric": metric, "direction": "max"}).score == Score(name=name, is_maximized=True)


@pytest.mark.parametrize(
    ("metric", "train", "val", "test"),
    [
        ("val/bpc", "train/bpc", "val/bpc", "test/bpc"),
        ("eval_bpc", "train_bpc", "eval_bpc", "test_bpc"),
        ("test/bpc", "train/bpc", "valid/bpc", "test/bpc"),
        ("train_bpc", "train_bpc", "validation_bpc", "test_bpc"),
    ],
)
def test_each_stage_has_its_prefix(metric, train, val, test):
    for stage, name in (("train", train), ("val", val), ("test", test)):
        assert logged(metric).value({name: 1.5, "other": 2.0}, stage) == 1.5
        assert logged(metric).value({"other": 2.0}, stage) is None
    assert {train, val, test} <= set(logged(metric).all_names)


def test_a_metric_without_a_prefix_is_of_the_validation():
    values = {"bpc": 1.5}
    assert [logged("bpc").value(values, stage) for stage in ("train", "val", "test")] == [None, 1.5, None]


@pytest.mark.parametrize(
    ("unit", "value", "fraction"),
    [("%", 87.5, 0.875), ("%", 0.875, 0.875), ("%", 250.0, 250.0), ("", 87.5, 87.5), ("", math.nan, None)],
)
def test_percentages_become_fractions(unit, value, fraction):
    assert logged("val/error", unit).value({"val/error": value}, "val") == fraction


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("val/bpc", "score='val/bpc': must be a dictionary with the keys metric, name, unit, direction."),
        ({"metrik": "bpc"}, "score: unknown key 'metrik'. Use metric, name, unit, direction."),
        ({"direction": "min"}, "score: has no 'metric'. Example: {'metric': 'val/bpc', 'direction': 'min'}."),
        ({"metric": "bpc"}, "score: has no 'direction'. Example: {'metric': 'val/bpc', 'direction': 'min'}."),
        ({"metric": "bpc", "direction": "down"}, "score['direction']='down': must be 'min' or 'max'."),
        ({"metric": "", "direction": "min"}, "score['metric']='': must be a string without control characters."),
        (
            {"metric": "bpc", "direction": "min", "unit": "a\nb"},
            "score['unit']='a\\nb': must be a string without control characters.",
        ),
        ({"metric": 3, "direction": "min"}, "score['metric']=3: must be a string without control characters."),
    ],
)
def test_mistakes_are_refused(settings, message):
    with pytest.raises(ValueError) as refusal:
        LoggedScore.of(settings)
    assert str(refusal.value) == message
