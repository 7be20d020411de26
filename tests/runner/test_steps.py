"""Trainings of training.max_steps optimizer steps, in laps of training.lap_steps."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from tests.support.configs import composed
from tests.support.settings import NO_REPORT, TINY

import laptime
from laptime.config.identity import hashed_config
from laptime.errors import UserError
from laptime.evaluation.main import main as evaluate
from laptime.record.files import read_epochs, read_record
from laptime.record.laps import num_laps, steps_per_lap
from laptime.tune.__main__ import main as tune

# 240 samples in batches of 32: a pass has 7 steps, so it ends in the middle of a lap.
STEPS = (*TINY, "training.max_steps=40", "training.lap_steps=10")
CURVE = ["epoch", "rank", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"]


def curve(*run_dirs: Path) -> list[list[float]]:
    return pd.concat([read_epochs(run_dir) for run_dir in run_dirs])[CURVE].to_numpy().tolist()


def test_a_run_has_laps_of_exactly_as_many_steps(trained):
    run_dir = trained(*STEPS)
    epochs, record = read_epochs(run_dir), read_record(run_dir)
    assert list(epochs["epoch"]) == [0, 1, 2, 3] and list(epochs["is_warmup"]) == [True, False, False, False]
    assert list(epochs["num_batches"]) == [10] * 4 and list(epochs["num_samples"]) == [10 * 32] * 4
    assert (record["lap"]["unit"], record["lap"]["num_batches"]) == ("batches", 10)
    timing = record["timing"]
    assert timing["steps_per_s"] * timing["epoch_time_s"] == pytest.approx(10)
    assert record["result"]["stop_reason"] == "epochs" and record["result"]["val_loss"] == epochs["val_loss"].iloc[-1]
    log = (run_dir / "train.log").read_text()
    assert "] lap 1/4  " in log and "] lap 4/4  " in log and "] epoch" not in log


def test_the_table_of_a_run_speaks_of_laps(call, work_folder):
    printed = " ".join(call(*STEPS).stdout.replace("│", " ").split())
    assert "laps 4 of 10 steps, of which 1 warm-up" in printed and "lap time" in printed
    assert "epoch" not in printed.replace("measure.warmup_epochs", "")


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["dataset.pipeline=workers", "dataset.num_workers=1", "dataset.rotation_degrees=20", "model.dropout=0.5"],
        ["training.ema_decay=0.9", "training.mixup_alpha=0.2", "training.steps_per_execution=3"],
        ["training.num_microbatches=2", "training.gradient_clip_norm=1"],
    ],
)
def test_a_resumed_run_equals_the_undisturbed_run_bit_for_bit(more, trained, work_folder):
    whole, half = trained(*STEPS, *more), trained(*STEPS, *more, "training.max_steps=20")
    laptime.run([*STEPS, *more, "hydra.run.dir=second", f"training.checkpoint={half}"])
    assert curve(half, Path("second")) == curve(whole)
    assert read_record(Path("second"))["result"]["test_loss"] == read_record(whole)["result"]["test_loss"]


def test_restarted_ranks_equal_undisturbed_ranks(trained, train, work_folder):
    two = [*STEPS, "strategy.world_size=2", "training.batch_size=16"]
    fails = "+callbacks.breaks={_target_:breaking.BreakAt,rank:1,epoch:2,how:exit,once:true}"
    done = train(*two, fails, "strategy.max_restarts=1", "hydra.run.dir=restarted")
    assert done.returncode == 0, done.stderr
    epochs = read_epochs(Path("restarted"))
    assert epochs["attempt"].max() == 1 and list(epochs["num_batches"]) == [10] * 8
    assert curve(Path("restarted")) == curve(trained(*two))


def test_two_ranks_learn_what_one_learns_with_the_global_batch(trained):
    comparable = [*STEPS, "training.batch_scope=global", "model.dropout=0"]
    one, two = trained(*comparable), trained(*comparable, "strategy.world_size=2")
    by_rank = read_epochs(two).groupby("epoch")
    assert list(by_rank["num_samples"].sum()) == [10 * 32] * 4 and list(by_rank["num_batches"].max()) == [10] * 4
    for column in ("train_loss", "val_loss"):
        assert list(by_rank[column].first()) == pytest.approx(list(read_epochs(one)[column]), rel=1e-4)


def test_schedules_last_as_long_as_the_training(trained):
    per_step = trained(*STEPS, "scheduler=cosine_warmup", "scheduler.end=0.5")
    assert read_epochs(per_step)["lr"].iloc[-1] == pytest.approx(0.5 * composed().optimizer["lr"])
    per_lap = composed(*STEPS, "scheduler=cosine")
    assert per_lap.scheduler["T_max"] == 4
    assert composed("scheduler=cosine", "training.epochs=7").scheduler["T_max"] == 7


def test_the_bare_loop_repeats_a_lap(trained):
    run_dir = trained(*STEPS, "measure.bare_loop=true", "scheduler=one_cycle", "training.steps_per_execution=4")
    bare_loop = read_record(run_dir)["bare_loop"]
    assert bare_loop["num_epochs"] == 3
    assert bare_loop["train_loss"] == pytest.approx(read_epochs(run_dir)["train_loss"].iloc[-1], rel=1e-5)
    assert "did not do the same work" not in (run_dir / "train.log").read_text()


def test_averages_and_early_stopping_count_laps(work_folder):
    averaged = laptime.run([*STEPS, "training.swa_start_epoch=3", "hydra.run.dir=averaged"])
    assert averaged["status"] == "completed"
    slow = ["optimizer=sgd", "optimizer.lr=1e-30", "training.early_stopping_patience=2"]
    record = laptime.run([*STEPS, *slow, "training.max_steps=100", "hydra.run.dir=stopped"])
    assert record["result"]["stop_reason"] == "early_stopping"
    assert len(read_epochs(Path("stopped"))) == 3
    assert "has not improved for 2 laps" in Path("stopped/train.log").read_text()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.lap_steps=10"], "training.lap_steps=10: needs training.max_steps"),
        (
            ["training.max_steps=45", "training.lap_steps=10"],
            "must be a multiple of training.lap_steps=10. Use 40 or 50",
        ),
        (["training.max_steps=4", "training.lap_steps=10"], "must be a multiple of training.lap_steps=10. Use 10"),
        (["training.max_steps=0"], "training.max_steps=0: must be at least 1"),
        (["training.max_steps=40", "training.lap_steps=0"], "training.lap_steps=0: must be at least 1"),
        (["training.max_steps=40", "training.epochs=3"], "training.epochs=3: has no effect with training.max_steps"),
        (["training.max_steps=40", "training.epochs=5"], "training.epochs=5: has no effect with training.max_steps"),
        (["training.max_steps=40", "training.batch_size=241"], "training.batch_size=241: is larger than the training"),
        (["training.max_steps=40", "training.swa_start_epoch=10"], "less than training.max_steps=40, which is 10 laps"),
        (["training.max_steps=11", "measure.warmup_epochs=1"], "less than training.max_steps=11, which is 1 lap"),
        (
            ["training.max_steps=40", "scheduler=cosine", "scheduler.T_max=${training.epochs}"],
            "Use ${laptime:num_laps}, the number of laps",
        ),
    ],
)
def test_refused(overrides, message, call, work_folder):
    done = call(*TINY, *overrides)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
    assert not list(work_folder.iterdir())


def test_a_sweep_over_steps_and_epochs_is_accepted(call, work_folder):
    done = call("-m", *TINY, "training.max_steps=null,40", "training.epochs=3", "sweep.dry_run=true")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.max_steps=40"], "has trained 40 steps already, but training.max_steps=40"),
        (
            ["training.max_steps=80", "training.lap_steps=20"],
            "training.lap_steps is 10 in the checkpoint, 20 in the run",
        ),
        (["training.max_steps=100", "training.lap_steps=null"], ""),  # ten laps of ten steps
        (["training.max_steps=80", "training.lap_steps=null"], "training.lap_steps is 10 in the checkpoint, 8 in the"),
        (["training.max_steps=null", "training.lap_steps=null"], "training.lap_steps is 10 in the checkpoint, None in"),
    ],
)
def test_a_resumed_run_may_have_more_laps_of_the_same_steps(overrides, message, trained, work_folder):
    arguments = [*STEPS, *overrides, f"training.checkpoint={trained(*STEPS)}"]
    if not message:
        assert laptime.run(arguments)["status"] == "completed"
        return
    with pytest.raises(UserError) as refusal:
        laptime.run(arguments)
    assert message in str(refusal.value)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("max_steps", "lap_steps", "laps"),
    [(40, None, 10), (40, 20, 2), (7, None, 7), (11, None, 1), (26, None, 2), (2000, None, 10), (1, None, 1)],
)
def test_laps_of_a_configuration(max_steps, lap_steps, laps):
    training = {"epochs": 5, "max_steps": max_steps, "lap_steps": lap_steps}
    assert num_laps(training) == laps and steps_per_lap(training) == max_steps // laps


@pytest.mark.unit
def test_a_configuration_of_an_older_version_has_epochs():
    assert num_laps({"epochs": 5}) == 5 and steps_per_lap({"epochs": 5}) is None


@pytest.mark.unit
def test_hashes_cover_steps_only_if_a_run_has_them():
    def hashed(**training):
        config = composed()
        return hashed_config(replace(config, training=replace(config.training, **training)), "cpu", 1, 1)

    assert not {"training.max_steps", "training.lap_steps"} & hashed().keys()
    assert hashed(max_steps=40) == hashed(max_steps=40, lap_steps=4, epochs=9)
    assert hashed(max_steps=40) != hashed(max_steps=40, lap_steps=8)
    assert "training.epochs" not in hashed(max_steps=40)


def test_evaluation_says_after_how_many_steps(trained, work_folder, capsys):
    shutil.copytree(trained(*STEPS), "run")
    assert evaluate(["run=run", "latency.batch_sizes=[]"]) == 0
    assert "after 40 steps" in capsys.readouterr().out
    checkpoint = json.loads(Path("run/evaluation/evaluation.json").read_text())["checkpoint"]
    assert (checkpoint["epochs"], checkpoint["steps"]) == (None, 40)


@pytest.mark.parametrize("command", [["batch_size", "--limit", "0.001"], ["lr", "--steps", "20"]])
def test_tune_takes_the_arguments_of_a_training_by_steps(command, work_folder, capsys):
    assert tune([*command, "dataset.limit=500", "strategy.threads_per_rank=1", "training.max_steps=40"]) == 0
    assert "training.max_steps=40" in capsys.readouterr().out


def test_a_sweep_reports_laps_and_resumes(train, work_folder):
    sweep = ["-m", *STEPS, "training.max_steps=20", "strategy.world_size=1,2", "hydra.sweep.dir=sweep"]
    done = train(*sweep)
    assert done.returncode == 0, done.stderr
    report = Path("sweep/summary/report.md").read_text()
    assert "lap time" in report and not re.search(r"\bepochs?\b(?!\.csv)", report)
    assert "A lap (10 batches)" in report
    again = train("sweep.resume=sweep", "-m", *sweep[1:-1], NO_REPORT)
    assert again.returncode == 0 and "all 2 runs are completed" in again.stderr, again.stderr
