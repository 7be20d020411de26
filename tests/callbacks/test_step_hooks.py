"""Callbacks of a user's own see every optimizer step, as they would in any training of Lightning's."""

import json
import os
import sys
from pathlib import Path

import pytest

import laptime
from laptime.errors import TrainingFailed, UserError
from laptime.record import read_epochs

COUNTS = """
import json
import torch
from collections import Counter
from pytorch_lightning.callbacks import Callback


class Counts(Callback):
    def __init__(self):
        self.seen, self.before = Counter(), None

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen["start"] += 1
        self.before = [weight.clone() for weight in module.network.parameters()]

    def on_before_backward(self, trainer, module, loss):
        self.seen["loss"] += bool(loss.requires_grad)

    def on_after_backward(self, trainer, module):
        self.seen["backward"] += any(bool(weight.grad.any()) for weight in module.network.parameters())
        norm = torch.stack([weight.grad.norm() for weight in module.network.parameters()]).norm()
        module.log("gradient_norm", norm, on_step=False, on_epoch=True)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        weights = zip(self.before, module.network.parameters())
        self.seen["before_step"] += all(torch.equal(old, new) for old, new in weights)

    def on_before_zero_grad(self, trainer, module, optimizer):
        weights = zip(self.before, module.network.parameters())
        self.seen["after_step"] += any(not torch.equal(old, new) for old, new in weights)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.seen["end"] += len(batch)

    def on_fit_end(self, trainer, module):
        norm = float(trainer.callback_metrics["gradient_norm"])
        with open(f"counts{trainer.global_rank}.json", "w") as file:
            json.dump({**self.seen, "norm": norm}, file)
"""
ODD = """
import pathlib
import numpy
from pytorch_lightning.callbacks import Callback


class Keeps(Callback):
    def __init__(self, what):
        self.what = what

    def state_dict(self):
        return {"state": eval(self.what)}

    def load_state_dict(self, state):
        pathlib.Path("given_back").write_text(repr(state["state"]))


class Stops(Callback):
    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = True
"""
QUICK = ["device=cpu", "dataset.limit=500", "training.epochs=2", "measure.peak=false", "measure.breakdown=false"]
NUM_STEPS = 2 * 7  # of 400 images in batches of 64
LIGHTNING = "pytorch_lightning.callbacks"


@pytest.fixture
def counts(work_folder, monkeypatch):
    (work_folder / "counting.py").write_text(COUNTS)
    monkeypatch.syspath_prepend(str(work_folder))
    monkeypatch.setenv("PYTHONPATH", str(work_folder), prepend=os.pathsep)
    yield ["+callbacks.x._target_=counting.Counts", "security.allowed_targets=[counting]"]
    sys.modules.pop("counting", None)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_step_is_seen_from_its_start_to_its_end(precision, counts, capfd):
    laptime.run([*QUICK, *counts, f"training.precision={precision}", "measure.bare_loop=true"])
    seen = json.loads(Path("counts0.json").read_text())
    assert seen.pop("norm") > 0
    hooks = ("start", "loss", "backward", "before_step", "after_step", "end")
    assert seen == dict.fromkeys(hooks, NUM_STEPS)
    assert "training.steps_per_execution=1: Counts looks at single steps" in capfd.readouterr().err


def test_parts_of_a_batch_are_seen_and_the_training_stays_the_same(counts):
    parts = "training.accumulate_grad_batches=4"
    plain, watched = laptime.run([*QUICK, parts]), laptime.run([*QUICK, parts, *counts])
    seen = json.loads(Path("counts0.json").read_text())
    assert (seen["backward"], seen["loss"]) == (4 * NUM_STEPS, 4 * NUM_STEPS)
    assert seen["after_step"] == seen["before_step"] == NUM_STEPS
    one, other = (read_epochs(Path(record["config"]["run_dir"])) for record in (plain, watched))
    assert one["train_loss"].tolist() == other["train_loss"].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["none", "shared_memory"])
def test_ranks_show_gradients_that_are_averaged(hook, counts):
    laptime.run([*QUICK, *counts, "strategy.world_size=2", f"strategy.comm_hook={hook}"])
    one, other = (json.loads(Path(f"counts{rank}.json").read_text()) for rank in (0, 1))
    assert one == other and one["after_step"] == 2 * 4


def test_lightnings_own_averaging_is_of_every_step():
    last = [
        read_epochs(Path(laptime.run([*QUICK, *typed])["config"]["run_dir"]))["val_loss"].iloc[-1]
        for typed in (
            [f"+callbacks.x={{_target_:{LIGHTNING}.EMAWeightAveraging,decay:0.9}}"],
            [f"+callbacks.x={{_target_:{LIGHTNING}.EMAWeightAveraging,decay:0.9}}", "training.steps_per_execution=1"],
        )
    ]
    assert last[0] == last[1]


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("GradientAccumulationScheduler,scheduling:{0:4}", "training.accumulate_grad_batches"),
        ("StochasticWeightAveraging,swa_lrs:0.1", "training.swa_start_epoch"),
        ("BatchSizeFinder", "python -m laptime.tune batch_size"),
        ("LearningRateFinder", "python -m laptime.tune lr"),
        ("TQDMProgressBar", "callbacks.progress_bar"),
    ],
)
def test_callbacks_that_do_what_laptime_does_are_refused(name, instead, work_folder):
    with pytest.raises(UserError, match=f"callbacks.x=.*{name.partition(',')[0]}.*Use {instead}"):
        laptime.run([*QUICK, f"+callbacks.x={{_target_:{LIGHTNING}.{name}}}"])
    assert list(work_folder.iterdir()) == []


def test_a_callback_that_looks_for_a_backbone_is_refused(work_folder):
    with pytest.raises(UserError, match=r"callbacks\.x=.*BackboneFinetuning.*the network is module\.network"):
        laptime.run([*QUICK, f"+callbacks.x._target_={LIGHTNING}.BackboneFinetuning"])
    assert list(work_folder.iterdir()) == []


@pytest.mark.parametrize("name", ["EarlyStopping", "ModelCheckpoint"])
def test_a_metric_that_nobody_logs_is_said_in_a_line(name, work_folder):
    with pytest.raises(TrainingFailed, match=r"val_los.*val_loss"):
        laptime.run([*QUICK, f"+callbacks.x={{_target_:{LIGHTNING}.{name},monitor:val_los}}"])


@pytest.mark.parametrize("state", ["numpy.float64(1.5)", "pathlib.Path('x')", "lambda: 1"])
def test_a_state_that_no_checkpoint_can_keep_is_refused_before_anything_is_trained(state, work_folder, monkeypatch):
    (work_folder / "odd.py").write_text(ODD)
    monkeypatch.syspath_prepend(str(work_folder))
    with pytest.raises(TrainingFailed, match=r"the state of Keeps can't be kept.*return numbers, texts"):
        laptime.run([*QUICK, f'+callbacks.x={{_target_:odd.Keeps,what:"{state}"}}', "hydra.run.dir=run"])
    assert not list(Path("run/checkpoints").glob("*.ckpt")) and not Path("run/epochs.csv").exists()


def test_a_plain_state_is_kept(work_folder, monkeypatch):
    (work_folder / "odd.py").write_text(ODD)
    monkeypatch.syspath_prepend(str(work_folder))
    keeps = '+callbacks.x={_target_:odd.Keeps,what:"[1,2.5,None,dict(a=True)]"}'
    laptime.run([*QUICK, keeps, "hydra.run.dir=run"])
    again = laptime.run([*QUICK, keeps, "training.checkpoint=run/checkpoints/last.ckpt", "training.epochs=3"])
    assert again["status"] == "completed"
    assert Path("given_back").read_text() == "[1, 2.5, None, {'a': True}]"


def test_a_callback_that_stops_a_run_is_no_early_stopping(work_folder, monkeypatch, capfd):
    (work_folder / "odd.py").write_text(ODD)
    monkeypatch.syspath_prepend(str(work_folder))
    record = laptime.run([*QUICK, "+callbacks.x._target_=odd.Stops", "training.early_stopping_patience=3"])
    assert record["result"]["stop_reason"] == "callback"
    assert "stopped early: a callback asked for it" in capfd.readouterr().err


def test_values_that_lightnings_callbacks_log_by_steps_are_written():
    monitor = f"+callbacks.x={{_target_:{LIGHTNING}.LearningRateMonitor,logging_interval:step}}"
    laptime.run([*QUICK, monitor, "logger=csv", "dataset.limit=2500", "training.batch_size=16", "hydra.run.dir=run"])
    (metrics,) = Path("run").rglob("metrics.csv")
    assert "lr-Adam" in metrics.read_text().splitlines()[0]
