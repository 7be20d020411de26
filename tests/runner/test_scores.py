"""A run goes by the score of its task: its record, files, log, table, loggers, target and objective."""

import math
from pathlib import Path

import pytest
from tests.support.configs import changed, composed
from tests.support.logged_values import tensorboard_values
from tests.support.settings import TINY

import laptime
from laptime.config.identity import hashed_config
from laptime.config.schema import Config
from laptime.config.validate import validate
from laptime.errors import UserError
from laptime.lap.epoch_recorder import one_line, tags_of
from laptime.lap.epoch_sums import Means, Sums
from laptime.ranks.rank import Rank
from laptime.record.epochs import combine_ranks
from laptime.record.files import epoch_rows, read_epochs
from laptime.record.run_record import RunRecord
from laptime.record.score import ACCURACY, BITS_PER_CHARACTER, Score
from laptime.runner.table import result_rows
from laptime.sweeps.sweep import objective
from laptime.tasks.classification import Classification

SHORT = (*TINY, "training.epochs=3")


@pytest.fixture
def scored_by_bits(monkeypatch) -> None:
    """Let a classification be scored by the bits that its loss stands for, and count no correct predictions."""
    monkeypatch.setattr(Config, "score", BITS_PER_CHARACTER)
    monkeypatch.setattr(Classification, "score_of", lambda _, means: means.loss / math.log(2))
    add = Sums.add
    monkeypatch.setattr(Sums, "add", lambda self, losses, hits, sizes: add(self, losses, None, sizes))


@pytest.mark.usefixtures("scored_by_bits")
def test_a_run_goes_by_the_score_of_its_task(capsys):
    record = laptime.run([*SHORT, "logger=tensorboard", "measure.target_score=100"])
    result, run_dir = record["result"], Path(record["run_dir"])
    assert result["score"] == {"name": "bits per character", "unit": "bits/char", "is_maximized": False}
    for stage in ("train", "val", "test"):
        assert result[f"{stage}_accuracy"] is None
        assert result[f"{stage}_score"] == pytest.approx(result[f"{stage}_loss"] / math.log(2))
    epochs = read_epochs(run_dir)
    assert epochs["val_accuracy"].isna().all() and epochs["val_score"].iloc[-1] == result["val_score"]
    assert result["time_to_accuracy"] is None
    assert result["time_to_score"] == pytest.approx(epochs["epoch_time_s"][0])
    assert objective(RunRecord.read(run_dir), ["val_score", "time_to_score"]) == [
        result["val_score"], result["time_to_score"],
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert f"{result['test_score']:#.4g} bits/char  (loss {result['test_loss']:.4f})" in printed
    assert "time to 100 bits/char" in printed and "accuracy" not in printed
    log = (run_dir / "train.log").read_text()
    assert f"val loss {result['val_loss']:.4f}, bits per character {result['val_score']:#.4g}" in log
    values = tensorboard_values(run_dir)
    assert values["val/bits_per_character"][-1][1] == pytest.approx(result["val_score"])
    assert values["test/bits_per_character"][0][1] == pytest.approx(result["test_score"])
    assert values["hparam/val_bits_per_character"][0][1] == pytest.approx(result["val_score"])
    assert not any("accuracy" in tag for tag in values)


def test_accuracy_is_recorded_beside_the_score(trained):
    run_dir = trained(*TINY, "training.epochs=2")
    result, epochs = RunRecord.read(run_dir).result, read_epochs(run_dir)
    assert result.score == ACCURACY
    assert (result.train_score, result.val_score, result.test_score) == (
        result.train_accuracy, result.val_accuracy, result.test_accuracy,
    )  # fmt: skip
    for stage in ("train", "val"):
        assert epochs[f"{stage}_score"].equals(epochs[f"{stage}_accuracy"])


def test_a_target_score_is_a_target_accuracy_where_accuracy_is_the_score():
    result = laptime.run([*SHORT, "measure.target_score=0.01"])["result"]
    assert result["time_to_score"] == result["time_to_accuracy"] is not None


@pytest.mark.unit
def test_a_value_without_hits_has_no_accuracy():
    import torch

    sums, loss = Sums(), torch.tensor([2.0])
    sums.add(loss, None, [4])
    assert sums.means(Rank()) == sums.local_means() == Means(2.0, None, 4)
    assert Sums().local_means().num_samples == 0


@pytest.mark.unit
def test_the_log_has_no_score_that_was_not_measured(trained):
    epoch = combine_ranks(epoch_rows(trained(*TINY, "training.epochs=2"))[:1])
    assert f"accuracy {epoch.train_accuracy:.2%}" in one_line(epoch, 2, ACCURACY)


@pytest.mark.unit
def test_a_score_that_is_the_loss_leaves_the_tags_of_the_loss():
    tags = tags_of(Score(name="loss", is_maximized=False))
    assert (tags["train/loss"], tags["val/loss"]) == ("train_loss", "val_loss")


@pytest.mark.unit
def test_the_table_shows_a_score_without_a_loss():
    config = composed().as_dict()
    record = RunRecord.of(laptime_record(config))
    record.result.score, record.result.test_score = BITS_PER_CHARACTER, 1.88
    assert ("test bits per character", "1.880 bits/char") in result_rows(record, [])


def laptime_record(config: dict) -> dict:
    """The record of a run that was set up and measured nothing."""
    return {
        "status": "completed", "config": config,
        "device": {"requested": "cpu", "used": "cpu", "name": "a CPU", "precision": "32-true"},
        "dataset": {"name": "text", "num_train": 1, "num_val": 1, "num_test": 1},
        "model": {"name": "gpt", "num_parameters": 1},
        "strategy": {"world_size": 1, "threads_per_rank": 1, "oversubscribed": False},
        "batch": {"scope": "per_rank", "per_rank_batch_size": 1, "global_batch_size": 1},
    }  # fmt: skip


@pytest.mark.unit
def test_targets_change_no_hash():
    with_target = changed(measure={"target_score": 0.9})
    assert hashed_config(with_target, "cpu", 1, 1) == hashed_config(composed(), "cpu", 1, 1)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["measure.target_score=97"], "measure.target_score=97.0: must be in (0, 1], a fraction, because"),
        (["measure.target_score=inf"], "measure.target_score=inf: must be a finite number."),
        (["measure.target_score=0.9", "measure.target_accuracy=0.9"], "measure.target_score=0.9: can't be combined"),
        (["measure.target_score=0.9", "dataset.val_fraction=0"], "measure.target_score=0.9: needs a validation set"),
    ],
)
def test_a_target_that_can_not_be_reached_is_refused(overrides, words):
    with pytest.raises(UserError) as refusal:
        validate(composed(*overrides))
    assert str(refusal.value).startswith(words)


@pytest.mark.unit
def test_the_names_of_accuracies_are_refused_where_accuracy_is_not_the_score(monkeypatch):
    config, target = changed(optimized_metric="val_accuracy"), changed(measure={"target_accuracy": 0.9})
    config.check()
    validate(target)
    monkeypatch.setattr(Config, "score", BITS_PER_CHARACTER)
    with pytest.raises(
        UserError, match=r"optimized_metric=val_accuracy: .* scored by bits per character. Use val_score"
    ):
        config.check()
    with pytest.raises(
        UserError, match=r"measure.target_accuracy=0.9: .* bits per character. Use measure.target_score"
    ):
        validate(target)
    changed(optimized_metric=["val_score", "epoch_time_s"]).check()
    validate(changed(measure={"target_score": 1.9}))
