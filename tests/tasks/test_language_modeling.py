"""Runs of task=language_modeling: figures, sample, resuming, ranks; and what makes no sense for a task."""

import json
import math

import pytest
import torch
from tests.support.configs import composed
from tests.support.settings import QUICK

import laptime
from laptime import UserError
from laptime.config.validate import validate
from laptime.evaluation.main import main as evaluate
from laptime.exporting.main import main as export
from laptime.record.files import read_epochs
from laptime.tasks.language_modeling import LanguageModeling
from laptime.tasks.sampling import continue_text
from laptime.training import open_groups
from laptime.training.checkpoints import read
from laptime.training.open_groups import check_open_groups

TINY_TEXT = (
    *QUICK,
    "task=language_modeling",
    "dataset.limit=6000",
    "dataset.context_length=8",
    "model.num_layers=1",
    "model.width=16",
    "training.max_steps=12",
    "training.lap_steps=4",
)


def weights(folder):
    return read(folder / "checkpoints" / "last.ckpt", "checkpoint", "")["state_dict"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder and the record of a tiny run."""
    folder = tmp_path_factory.mktemp("text") / "run"
    return folder, laptime.run([*TINY_TEXT, f"hydra.run.dir={folder}"])


def test_figures(trained):
    folder, record = trained
    result, epochs = record["result"], read_epochs(folder)
    assert result["score"]["name"] == "bits per character"
    for stage in ("train", "val", "test"):
        assert result[f"{stage}_score"] == pytest.approx(result[f"{stage}_loss"] / math.log(2))
        assert result[f"{stage}_accuracy"] is None
    assert epochs["num_tokens"].tolist() == [4 * 12 * 8] * 3
    assert record["timing"]["tokens_per_s"] == pytest.approx(8 * record["timing"]["samples_per_s"])
    assert record["dataset"]["shape"] == [8] and record["dataset"]["vocab_size"] > 30
    assert record["model"]["flops_per_sample"] > 0
    assert epochs["train_loss"].iloc[-1] < math.log(record["dataset"]["vocab_size"])


def test_the_sample_continues_the_test_set(trained):
    folder, record = trained
    source = open_groups.build_node("dataset", record["config"]["dataset"])
    tokens, _ = source.load()
    content = (folder / "sample.txt").read_text()
    assert len(content) == 8 + 300 + 1
    assert content[:8] == source.decode(tokens[-600:-592].tolist())
    assert content.splitlines()[0] in (folder / "train.log").read_text()


def test_sampling_draws_no_other_random_numbers():
    torch.manual_seed(0)
    network = torch.nn.Embedding(5, 5)
    before = torch.random.get_rng_state()
    drawn = continue_text(network, torch.tensor([1, 2, 3]), seed=4, num_tokens=20)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert drawn == continue_text(network, torch.tensor([1, 2, 3]), seed=4, num_tokens=20)
    assert set(drawn) <= set(range(5)) and len(drawn) == 20


def test_a_resumed_run_equals_an_uninterrupted_one(trained, tmp_path):
    folder, record = trained
    resumable = [*TINY_TEXT, "scheduler=none"]
    laptime.run([*resumable, "hydra.run.dir=" + str(tmp_path / "whole")])
    laptime.run([*resumable, "training.max_steps=8", "hydra.run.dir=" + str(tmp_path / "half")])
    laptime.run([*resumable, f"training.checkpoint={tmp_path / 'half'}", "hydra.run.dir=" + str(tmp_path / "rest")])
    assert same(weights(tmp_path / "rest"), weights(tmp_path / "whole"))
    assert record["result"]["train_loss"] is not None and folder.exists()


def test_evaluate_finds_the_recorded_score(trained, capsys):
    folder, record = trained
    assert evaluate([f"run={folder}", "latency.batch_sizes=[2]", "latency.num_calls=2", "latency.warmup_calls=1"]) == 0
    evaluation = json.loads((folder / "evaluation" / "evaluation.json").read_text())
    assert evaluation["recorded"]["is_equal"] is True
    assert evaluation["result"]["test_score"] == pytest.approx(record["result"]["test_score"])
    shown = capsys.readouterr().out
    assert "test bits per character" in shown and "samples/s" in shown and "images" not in shown


def test_evaluate_names_a_character_that_the_network_does_not_know(trained, tmp_path, capsys):
    folder, _ = trained
    (tmp_path / "other.txt").write_text("In the beginning ★ " * 20, encoding="utf-8")
    assert evaluate([f"run={folder}", f"dataset.path={tmp_path / 'other.txt'}"]) == 2
    assert "contains '★' (U+2605)" in capsys.readouterr().err


def test_export_refuses_text_in_one_line(trained, capsys):
    folder, _ = trained
    assert export([f"run={folder}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: run={folder}: was trained with task=language_modeling") and error.count("\n") == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset=text"], r"^dataset\._target_=.*: holds text, but task=classification learns from images\."),
        (["model=gpt"], r"^model\._target_=.*: is a network for text, because it needs context_length and vocab_size"),
        (["task=language_modeling", "dataset=mnist"], "holds images, but task=language_modeling learns from text"),
        (["task=language_modeling", "model=cnn"], "is a network for images, because it needs input_shape and num_clas"),
        (["task=language_modeling", "training.label_smoothing=0.1"], r"^training\.label_smoothing=0\.1: smooths"),
        (["task=language_modeling", "training.mixup_alpha=0.2"], r"^training\.mixup_alpha=0\.2: mixes images"),
        (["task=language_modeling", "dataset.horizontal_flip=true"], r"^dataset\.horizontal_flip=true: augments"),
        (["task=language_modeling", "dataset.pipeline=workers"], r"^dataset\.pipeline=workers: must be memory"),
        (["task=language_modeling", "+callbacks.e._target_=pytorch_lightning.callbacks.EarlyStopping",
          "+callbacks.e.monitor=val_accuracy"], "which task=language_modeling does not have"),
    ],
)  # fmt: skip
@pytest.mark.unit
def test_what_makes_no_sense_for_a_task_is_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        config = composed(*overrides)
        validate(config)
        check_open_groups(config)


@pytest.mark.unit
@pytest.mark.parametrize("overrides", [["task=language_modeling"], ["task=language_modeling", "model=lstm"], []])
def test_what_makes_sense_passes(overrides):
    config = composed(*overrides)
    validate(config)
    check_open_groups(config)


@pytest.mark.unit
def test_the_loss_of_equal_logits_is_that_of_guessing():
    task, logits = LanguageModeling(), torch.zeros(2, 5, 7)
    assert float(task.loss(logits, torch.ones(2, 5, dtype=torch.int64))) == pytest.approx(math.log(7))


@pytest.mark.soak
@pytest.mark.parametrize("model", ["gpt", "lstm"])
@pytest.mark.parametrize(
    "strategy",
    [
        ["strategy=single"], ["strategy.world_size=2"], ["strategy.wrap_single_rank=true"],
        ["strategy.world_size=2", "strategy.comm_hook=bf16"], ["strategy.world_size=2", "training.compile=true"],
        ["strategy.world_size=2", "strategy.comm_hook=shared_memory", "training.gradient_clip_norm=null"],
        ["strategy.world_size=2", "training.num_microbatches=2", "training.batch_scope=global"],
        ["training.precision=bf16-mixed", "measure.bare_loop=true", "training.ema_decay=0.9"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_model_and_strategy_trains_on_text(model, strategy, tmp_path):
    sizes = [] if model == "gpt" else ["model=lstm", "model.hidden_size=16"]
    base = [one for one in TINY_TEXT if model == "gpt" or not one.startswith("model.")]
    record = laptime.run([*base, *sizes, *strategy, "measure.breakdown=true", f"hydra.run.dir={tmp_path / 'run'}"])
    losses = read_epochs(tmp_path / "run")["train_loss"]
    assert record["status"] == "completed" and record["result"]["test_score"] is not None
    assert losses.iloc[-1] < losses.iloc[0]
