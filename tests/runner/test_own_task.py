"""`task=own`: Laptime trains, times and resumes LightningModules and LightningDataModules of users."""

import json
from pathlib import Path

import pytest
import torch
from tests.support.logged_values import tensorboard_values
from tests.support.own_task import OWN, TWO_RANKS, losses

import laptime
from laptime.errors import TrainingFailed, UserError
from laptime.record.files import read_epochs, read_record


def test_a_run_is_recorded_tested_and_learns():
    record = laptime.run(
        [*OWN, "logger=tensorboard", "measure.breakdown=true", "training.epochs=3", "task.data.num=96",
         "task.score={metric: val/error, direction: min, unit: m}", "hydra.run.dir=run"]
    )  # fmt: skip
    assert record["status"] == "completed"
    dataset, model, batch, result = (record[name] for name in ("dataset", "model", "batch", "result"))
    assert (dataset["name"], dataset["num_train"], dataset["num_val"], dataset["num_test"]) == (
        "testednumbers", 96, 16, 24,
    )  # fmt: skip
    assert (model["name"], model["num_parameters"]) == ("sum", 25)
    assert (batch["per_rank_batch_size"], batch["global_batch_size"]) == (8, 8)
    assert result["score"] == {"name": "error", "unit": "m", "is_maximized": False}
    assert result["val_score"] == pytest.approx(result["val_loss"] ** 0.5, rel=0.1)
    assert result["test_loss"] is not None and result["test_score"] is not None
    first, *_, last = losses("run")
    assert last[1] < 0.5 * first[1]
    assert len(read_epochs(Path("run"))) == 3
    assert record["timing"]["steps_per_s"] > 0 and record["timing"]["warmup_epochs"] == 1
    assert record["breakdown"]["forward_s"] > 0
    assert "bare_loop" in record["missing"]
    assert {"task.module._target_", "task.data.num"} <= record["hashed_config"].keys()
    assert not {"model._target_", "training.batch_size"} & record["hashed_config"].keys()
    assert Path("run/checkpoints/best.ckpt").is_file()
    assert {"time/epoch_s", "throughput/samples_per_s", "val/error", "test/error"} <= tensorboard_values(
        Path("run")
    ).keys()


def test_the_loss_is_the_score_if_none_is_named():
    result = laptime.run([*OWN, "training.epochs=1", "hydra.run.dir=run"])["result"]
    assert result["score"]["name"] == "loss"
    for stage in ("train", "val", "test"):
        assert result[f"{stage}_score"] == result[f"{stage}_loss"] is not None


def test_two_ranks_split_the_data_and_learn_the_same_as_one(trained):
    # Each step has all samples, because Lightning shuffles the samples of several ranks in another order than those of
    # one. Adding gradients in another order changes float32's last digits.
    common = [*OWN, "training.epochs=6", "task.data.num=16", "task.module._target_=own_modules.NotesSamples"]
    one = trained(*common, "task.data.batch_size=16")
    two = trained(*common, "task.data.batch_size=8", TWO_RANKS)
    assert losses(two) == [pytest.approx(pair, rel=1e-5) for pair in losses(one)]
    record = read_record(two)
    assert len(set(record["strategy"]["rank_pids"])) == record["strategy"]["world_size"] == 2
    assert record["batch"]["global_batch_size"] == 16
    assert record["result"]["test_loss"] == pytest.approx(read_record(one)["result"]["test_loss"], rel=1e-5)
    samples = [json.loads((two / f"samples-{rank}.json").read_text()) for rank in (0, 1)]
    for of_rank_0, of_rank_1 in zip(*samples, strict=True):
        assert sorted(of_rank_0 + of_rank_1) == list(range(16))


def test_a_resumed_run_equals_an_undisturbed_one():
    laptime.run([*OWN, "training.epochs=4", "hydra.run.dir=whole"])
    laptime.run([*OWN, "training.epochs=2", "hydra.run.dir=half"])
    laptime.run([*OWN, "training.epochs=4", "hydra.run.dir=rest", "training.checkpoint=half"])
    assert losses("half") + losses("rest") == losses("whole")
    weights = [torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True) for run in ("rest", "whole")]
    assert all(torch.equal(a, b) for a, b in zip(*(w["state_dict"].values() for w in weights), strict=True))
    with pytest.raises(UserError, match=r"training\.epochs=4 is trained already"):
        laptime.run([*OWN, "training.epochs=4", "training.checkpoint=whole"])
    with pytest.raises(UserError, match=r"task\.module\.width"):
        laptime.run([*OWN, "training.epochs=5", "training.checkpoint=whole", "task.module.width=5"])


def test_a_module_with_two_optimizers_takes_its_own_steps():
    two = [*OWN, "task.module._target_=own_modules.TwoOptimizers"]
    laptime.run([*two, "training.epochs=4", "hydra.run.dir=run"])
    assert losses("run")[-1][1] < 0.5 * losses("run")[0][1]
    for setting in ("training.gradient_clip_norm=1", "training.max_steps=8"):
        with pytest.raises(UserError, match=f"{setting.partition('=')[0]}=.*takes its optimizer steps itself"):
            laptime.run([*two, setting])


def test_max_steps_makes_laps_of_steps():
    steps = ["training.max_steps=20", "training.lap_steps=5"]
    record = laptime.run([*OWN, *steps, "hydra.run.dir=run"])  # 2 1/2 passes over 8 batches
    laps = read_epochs(Path("run"))
    assert list(laps["epoch"]) == [0, 1, 2, 3] and set(laps["num_samples"]) == {5 * 8}
    assert (record["lap"]["unit"], record["lap"]["num_batches"]) == ("batches", 5)
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 20


def test_hyperparameters_that_are_objects_are_left_out_of_checkpoints(capsys):
    net = "task.module.net={_target_: torch.nn.Linear, in_features: 4, out_features: 1}"
    laptime.run([*OWN, net, "training.epochs=1", "hydra.run.dir=run"])
    parameters = torch.load("run/checkpoints/last.ckpt", weights_only=True)["hyper_parameters"]
    assert parameters == {"width": 4, "lr": 0.05}
    assert capsys.readouterr().err.count("checkpoints hold no hyperparameter net") == 1
    laptime.run([*OWN, net, "training.epochs=2", "training.checkpoint=run", "hydra.run.dir=rest"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=mlp", r"model=mlp: has no effect with task=own.*task\.module"),
        ("model.dropout=0", r"model\.dropout=0: has no effect with task=own"),
        ("dataset.limit=100", r"dataset\.limit=100: .*task\.data"),
        ("optimizer.lr=0.1", r"optimizer\.lr=0\.1: has no effect"),
        ("scheduler=cosine", r"scheduler=cosine: has no effect"),
        ("training.batch_size=32", r"training\.batch_size=32: .*Use task\.data\.batch_size"),
        ("training.mixup_alpha=0.2", r"training\.mixup_alpha=0\.2: has no effect"),
        ("training.num_microbatches=2", r"training\.num_microbatches=2: .*GradientAccumulationScheduler"),
        ("training.compile=true", r"training\.compile=true: .*torch\.compile\(self\.net\)"),
        ("measure.bare_loop=true", r"measure\.bare_loop=true: has no effect"),
        ("measure.target_accuracy=0.9", r"measure\.target_accuracy=0\.9: .*target_score"),
        ("strategy.shard_optimizer=true", r"strategy\.shard_optimizer=true: "),
        ("task.score.metric=val/error", r"task\.score\.metric=val/error: needs .*direction"),
        ("task.module._target_=null", r"task\.module\._target_: has no value"),
        ("task.module.depth=3", r"task\.module\.depth=3: .*no such argument"),
        ("task.module._target_=own_modules.Numbers", r"must create a LightningModule, but creates a Numbers"),
        ("task.data._target_=own_modules.Sum", r"must create a LightningDataModule, but creates a Sum"),
        ("task.module._target_=os.path.join", r"is not on the allow-list"),
        (
            "task.module.net={_target_: os.system, command: 'true'}",
            r"task\.module\.net\._target_=os\.system: is not on",
        ),
    ],
)
def test_settings_without_effect_and_wrong_classes_are_refused(override, message):
    with pytest.raises(UserError, match=message):
        laptime.run([*OWN, override])


def test_keys_of_the_task_need_it():
    with pytest.raises(UserError, match=r"task\.module\.width=3: only works with task=own"):
        laptime.run(["task.module.width=3"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "task.score={metric: val/f1, direction: max}",
            r"val/f1: Sum has not logged it\. It logs .*val/error",
        ),
        ("task.module.lr=1e20", "the training loss became"),
    ],
)
def test_a_training_whose_record_would_be_wrong_fails(override, message):
    with pytest.raises(TrainingFailed, match=message):
        laptime.run([*OWN, override, "hydra.run.dir=run"])
    assert read_record(Path("run"))["status"] == "failed"


@pytest.mark.parametrize("command", [["evaluate", "run=run"], ["export", "run=run", "format=onnx"]])
def test_commands_for_trained_models_refuse_the_task(command, call):
    laptime.run([*OWN, "training.epochs=1", "hydra.run.dir=run"])
    done = call(*command)
    assert done.returncode == 2 and "task=own" in done.stderr


def test_tune_refuses_the_task(call):
    done = call("tune", "lr", "task=own", *OWN[-2:])
    assert done.returncode == 2 and "task=own" in done.stderr
