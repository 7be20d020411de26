"""The bare loop beside the run's own epochs: the same work, and no trace of it."""

import itertools
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import laptime
from laptime.callbacks import bare_loop
from laptime.callbacks.bare_loop import BareLoop
from laptime.errors import UserError
from laptime.record import read_epochs

QUICK = [
    "dataset.limit=2000", "training.epochs=3", "training.batch_size=64", "device=cpu", "logger=none",
    "strategy.threads_per_rank=1", "measure.breakdown=false", "measure.peak=false",
]  # fmt: skip


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.dropout=0.2"],
        ["strategy.world_size=2", "model.dropout=0.2"],
        ["training.precision=bf16-mixed"],
        ["training.gradient_clip_norm=0.5"],
        ["dataset.pipeline=workers", "dataset.num_workers=1", "dataset.limit=500"],
        ["dataset.horizontal_flip=true", "dataset.rotation_degrees=10"],
        ["optimizer=sgd", "scheduler.step_size=1"],
        [
            "scheduler._target_=torch.optim.lr_scheduler.OneCycleLR",
            "~scheduler.step_size",
            "~scheduler.gamma",
            "+scheduler.max_lr=0.01",
            "+scheduler.total_steps=4",
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
def test_it_learns_the_same(overrides):
    record = laptime.run([*QUICK, "measure.bare_loop=true", *overrides])
    bare = record["bare_loop"]
    # The sum over an epoch is in float32 here, in float64 there.
    assert bare["train_loss"] == pytest.approx(record["result"]["train_loss"], rel=1e-5)
    assert bare["num_epochs"] == 2
    assert bare["overhead_min"] <= bare["overhead"] <= bare["overhead_max"]


def test_the_run_is_what_it_would_be_without():
    one, other = (
        laptime.run([*QUICK, "model.dropout=0.2", f"measure.bare_loop={value}", f"hydra.run.dir={value}"])
        for value in ("true", "false")
    )
    columns = ["epoch", "rank", "train_loss", "val_loss"]
    assert read_epochs(Path("true"))[columns].equals(read_epochs(Path("false"))[columns])
    assert one["result"]["test_loss"] == other["result"]["test_loss"]
    assert other["bare_loop"]["epoch_time_s"] is None


def test_its_epochs_are_no_training_time(monkeypatch):
    # A clock for the bare loop alone, on which each of its readings is 1,000 s after the one before.
    readings = itertools.count(0, 1000)
    monkeypatch.setattr(bare_loop, "time", SimpleNamespace(perf_counter=lambda: next(readings)))
    record = laptime.run([*QUICK, "measure.bare_loop=true"])
    assert record["bare_loop"]["epoch_time_s"] == 1000
    # Three epochs, each from the first to the fourth reading, less a few real seconds.
    assert record["timing"]["total_train_s"] == pytest.approx(-9000, rel=0.1)


def test_a_signal_in_it_loses_no_epoch(monkeypatch):
    epoch, num_begun = BareLoop._epoch, itertools.count(1)

    def interrupted(*arguments):
        if next(num_begun) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return epoch(*arguments)

    monkeypatch.setattr(BareLoop, "_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        laptime.run([*QUICK, "measure.bare_loop=true", "hydra.run.dir=here"])
    checkpoint = torch.load("here/checkpoints/last.ckpt", weights_only=True)
    assert set(read_epochs(Path("here"))["epoch"]) == {0, 1}
    assert checkpoint["epoch"] == 1


def test_other_work_is_said(monkeypatch, caplog):
    monkeypatch.setattr(bare_loop, "_without_weights", lambda group: {"lr": 0.1})
    laptime.run([*QUICK, "measure.bare_loop=true"])
    assert "not the same work" in caplog.text or "not the same work" in next(Path().rglob("train.log")).read_text()


def test_what_it_does_not_know_is_refused():
    with pytest.raises(UserError, match=r"measure.bare_loop=true.*accumulate_grad_batches=2"):
        laptime.run([*QUICK, "measure.bare_loop=true", "training.accumulate_grad_batches=2"])
