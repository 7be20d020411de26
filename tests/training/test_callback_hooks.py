"""User callbacks get every hook of every optimizer step, as in any Lightning training."""

import json
from pathlib import Path

import pandas as pd
import pytest
from tests.support.settings import TINY

import laptime
from laptime.errors import TrainingFailed, UserError
from laptime.record.files import read_epochs

SHORT = (*TINY, "training.epochs=2")
NUM_STEPS = 2 * 8  # 240 images in batches of 32
COUNTED = "+callbacks.x._target_=observing_callbacks.CountHooks"
LIGHTNING = "pytorch_lightning.callbacks"


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_callbacks_get_every_hook_of_every_step(precision, capfd):
    laptime.run([*SHORT, COUNTED, f"training.precision={precision}", "measure.bare_loop=true"])
    seen = json.loads(Path("counts0.json").read_text())
    assert seen.pop("norm") > 0
    hooks = ("start", "loss", "backward", "before_step", "after_step", "end")
    assert seen == dict.fromkeys(hooks, NUM_STEPS)
    assert "training.steps_per_execution=1, because CountHooks" in capfd.readouterr().err


def test_callbacks_see_microbatches_and_do_not_change_the_training(trained):
    microbatches = "training.num_microbatches=4"
    plain = trained(*SHORT, microbatches)
    watched = laptime.run([*SHORT, microbatches, COUNTED])
    seen = json.loads(Path("counts0.json").read_text())
    assert (seen["backward"], seen["loss"]) == (4 * NUM_STEPS, 4 * NUM_STEPS)
    assert seen["after_step"] == seen["before_step"] == NUM_STEPS
    one, other = (read_epochs(folder) for folder in (plain, Path(watched["run_dir"])))
    assert one["train_loss"].tolist() == other["train_loss"].tolist()


@pytest.mark.parametrize("hook", ["none", "shared_memory"])
def test_callbacks_see_averaged_gradients_on_every_rank(hook, train, work_folder):
    done = train(*SHORT, COUNTED, "strategy.world_size=2", f"strategy.comm_hook={hook}")
    assert done.returncode == 0, done.stderr
    one, other = (json.loads(Path(f"counts{rank}.json").read_text()) for rank in (0, 1))
    assert one == other and one["after_step"] == 2 * 4


@pytest.mark.soak
def test_lightnings_weight_averaging_updates_after_every_step(trained):
    averaged = [*SHORT, f"+callbacks.x={{_target_:{LIGHTNING}.EMAWeightAveraging,decay:0.9}}"]
    last = [
        read_epochs(trained(*settings))["val_loss"].iloc[-1]
        for settings in (SHORT, averaged, [*averaged, "training.steps_per_execution=1"])
    ]
    assert last[0] != last[1] == last[2]


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("GradientAccumulationScheduler,scheduling:{0:4}", "training.num_microbatches"),
        ("StochasticWeightAveraging,swa_lrs:0.1", "training.swa_start_epoch"),
        ("BatchSizeFinder", "laptime tune batch_size"),
        ("LearningRateFinder", "laptime tune lr"),
        ("TQDMProgressBar", "callbacks.progress_bar"),
    ],
)
def test_callbacks_that_laptime_replaces_are_refused(name, instead, work_folder):
    with pytest.raises(UserError, match=f"callbacks.x=.*{name.partition(',')[0]}.*Use {instead}"):
        laptime.run([*SHORT, f"+callbacks.x={{_target_:{LIGHTNING}.{name}}}"])
    assert list(work_folder.iterdir()) == []


def test_backbone_finetuning_is_refused(work_folder):
    with pytest.raises(UserError, match=r"callbacks\.x=.*BackboneFinetuning.*module\.network"):
        laptime.run([*SHORT, f"+callbacks.x._target_={LIGHTNING}.BackboneFinetuning"])
    assert list(work_folder.iterdir()) == []


@pytest.mark.parametrize("name", ["EarlyStopping", "ModelCheckpoint"])
def test_an_unknown_metric_fails_with_one_line(name, work_folder):
    with pytest.raises(TrainingFailed, match=r"val_los.*val_loss"):
        laptime.run([*SHORT, f"+callbacks.x={{_target_:{LIGHTNING}.{name},monitor:val_los}}"])


@pytest.mark.parametrize("state", ["number of NumPy's", "path", "function"])
def test_a_callback_state_that_no_checkpoint_can_hold_is_refused_before_training(state, work_folder):
    refusal = r"^callbacks: a checkpoint can't hold the state of KeepState\. Its state_dict\(\) must return only "
    with pytest.raises(TrainingFailed, match=refusal):
        laptime.run([*SHORT, keeps(state), "hydra.run.dir=run"])
    assert not list(Path("run/checkpoints").glob("*.ckpt")) and not Path("run/epochs.csv").exists()


def keeps(state: str) -> str:
    return f'+callbacks.x={{_target_:observing_callbacks.KeepState,what:"{state}"}}'


def test_a_callback_state_of_plain_values_is_restored(work_folder):
    laptime.run([*SHORT, keeps("plain"), "hydra.run.dir=run"])
    again = laptime.run([*SHORT, keeps("plain"), "training.checkpoint=run/checkpoints/last.ckpt", "training.epochs=3"])
    assert again["status"] == "completed"
    assert Path("given_back").read_text() == "[1, 2.5, None, {'a': True}]"


def test_a_callback_that_stops_the_run_is_the_stop_reason(capfd):
    stops = "+callbacks.x._target_=observing_callbacks.StopAfterEpoch"
    record = laptime.run([*SHORT, stops, "training.early_stopping_patience=3"])
    assert record["result"]["stop_reason"] == "callback"
    assert "stopped early: a callback requested it" in capfd.readouterr().err


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_callback_that_sets_max_epochs_is_the_stop_reason(epochs):
    record = laptime.run([*SHORT, f"+callbacks.x={{_target_:stop_within_epoch.TrainFor,epochs:{epochs}}}"])
    assert record["result"]["stop_reason"] == "callback"
    assert read_epochs(Path(record["run_dir"]))["epoch"].to_list() == list(range(epochs))


def test_values_that_lightning_callbacks_log_per_step_are_written():
    monitor = f"+callbacks.x={{_target_:{LIGHTNING}.LearningRateMonitor,logging_interval:step}}"
    # Lightning logs every 50 steps; an epoch has 75, at rates of 0.001 and 0.0001.
    settings = ["dataset.num_train=3000", "optimizer.lr=0.001", "scheduler.step_size=1"]
    laptime.run([*SHORT, *settings, monitor, "logger=csv", "hydra.run.dir=run"])
    (path,) = Path("run").rglob("metrics.csv")
    by_step = pd.read_csv(path).dropna(subset="lr-Adam").set_index("step")["lr-Adam"]
    assert by_step.to_dict() == pytest.approx({49: 0.001, 99: 0.0001, 149: 0.0001})
