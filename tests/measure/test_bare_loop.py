"""The bare loop does the same work as the run's epochs, and does not change the run."""

import itertools
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tests.support.settings import TINY

import laptime
from laptime.errors import UserError
from laptime.lap import epoch_timer
from laptime.measure import bare_loop
from laptime.measure.bare_loop import BareLoop
from laptime.record.files import read_epochs, read_record

SHORT = (*TINY, "training.epochs=3")


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.dropout=0.2"],
        ["strategy.world_size=2"],
        ["training.precision=bf16-mixed"],
        ["training.gradient_clip_norm=0.5"],
        ["dataset.pipeline=workers", "dataset.num_workers=1"],
        ["dataset.horizontal_flip=true", "dataset.rotation_degrees=10"],
        ["optimizer=sgd", "scheduler.step_size=1"],
        [
            "scheduler._target_=momentum_schedule.MomentumToo",
            "~scheduler.step_size",
            "scheduler.gamma=0.5",
        ],
        [
            "scheduler=one_cycle",
            "training.ema_decay=0.9",
            "training.label_smoothing=0.1",
            "training.mixup_alpha=0.4",
        ],
    ],
    ids=["dropout", "ddp", "bf16", "clipping", "workers", "augmented", "schedule", "momentum too", "adaptive"],
)
def test_the_bare_loop_learns_the_same_as_the_run(overrides, trained):
    record = read_record(trained(*SHORT, "measure.bare_loop=true", *overrides))
    bare = record["bare_loop"]
    # The bare loop sums in float32, the run in float64.
    assert bare["train_loss"] == pytest.approx(record["result"]["train_loss"], rel=1e-5)
    assert bare["num_epochs"] == 2
    assert bare["overhead_min"] <= bare["overhead"] <= bare["overhead_max"]


def test_the_bare_loop_does_not_change_the_run(trained):
    one, other = (trained(*SHORT, f"measure.bare_loop={value}", "model.dropout=0.2") for value in ("true", "false"))
    columns = ["epoch", "rank", "train_loss", "val_loss"]
    assert read_epochs(one)[columns].equals(read_epochs(other)[columns])
    assert read_record(one)["result"]["test_loss"] == read_record(other)["result"]["test_loss"]
    assert read_record(other)["bare_loop"]["epoch_time_s"] is None


def test_its_epochs_do_not_count_as_training_time(monkeypatch):
    # A fake clock adds 1,000 s to each of its epochs.
    real, added = time.perf_counter, [0.0]
    for module in (bare_loop, epoch_timer):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: real() + added[0], time=time.time))
    epoch = BareLoop._epoch

    def slow_epoch(*arguments):
        added[0] += 1000
        return epoch(*arguments)

    monkeypatch.setattr(BareLoop, "_epoch", slow_epoch)
    record = laptime.run([*SHORT, "measure.bare_loop=true"])
    assert 1000 < record["bare_loop"]["epoch_time_s"] < 2000
    assert 0 < record["timing"]["total_train_s"] < 1000


def test_a_signal_during_the_bare_loop_loses_no_epoch(monkeypatch):
    epoch, num_started = BareLoop._epoch, itertools.count(1)

    def interrupted(*arguments):
        if next(num_started) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return epoch(*arguments)

    monkeypatch.setattr(BareLoop, "_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        laptime.run([*SHORT, "measure.bare_loop=true", "hydra.run.dir=here"])
    checkpoint = torch.load("here/checkpoints/last.ckpt", weights_only=True)
    assert set(read_epochs(Path("here"))["epoch"]) == {0, 1}
    assert checkpoint["epoch"] == 1


def test_a_different_loss_is_warned_about():
    # The callback changes the weights of the run, but not the copy of the bare loop.
    scales = "+callbacks.x._target_=meddling_callback.ScaleWeights"
    laptime.run([*SHORT, "measure.bare_loop=true", scales, "hydra.run.dir=here"])
    assert "did not do the same work" in Path("here/train.log").read_text()


def test_settings_that_the_bare_loop_does_not_support_are_refused():
    with pytest.raises(UserError, match=r"measure.bare_loop=true.*num_microbatches=2"):
        laptime.run([*SHORT, "measure.bare_loop=true", "training.num_microbatches=2"])
