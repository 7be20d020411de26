"""Schedules per step, averaged weights, label smoothing and mixup, in real trainings and their checkpoints."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.support.configs import composed
from tests.support.settings import QUICK, TINY
from torch import nn

import laptime
from laptime.config import targets
from laptime.config.identity import hashed_config
from laptime.config.validate import validate
from laptime.data.mnist import MNIST
from laptime.data.order import epoch_seed
from laptime.errors import UserError
from laptime.record.files import CHECKPOINT_DIR, LAST_CHECKPOINT, read_epochs, read_record
from laptime.record.hashes import config_hashes
from laptime.schedulers.cosine_warmup import CosineWarmup
from laptime.schedulers.one_cycle import OneCycle
from laptime.tasks.mixup import Mixup, mixed_loss
from laptime.training.checkpoints import identity
from laptime.training.weight_average import WeightAverage

SHORT = (*TINY, "training.epochs=2")  # of 8 steps each
# All options together. A resumed run could lose the state of each.
ADAPTIVE = (
    "scheduler=one_cycle", "training.ema_decay=0.9", "training.label_smoothing=0.1", "training.mixup_alpha=0.4",
)  # fmt: skip
MIXUP = ("training.mixup_alpha=0.5", "model.dropout=0")
LOSSES = ["epoch", "rank", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"]


def run(*overrides: str) -> Path:
    folder = Path(f"run{len(list(Path().glob('run*')))}")
    laptime.run([*SHORT, *overrides, f"hydra.run.dir={folder}"])
    return folder


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / CHECKPOINT_DIR / LAST_CHECKPOINT, weights_only=True)


def failed_run(*overrides: str) -> Path:
    """A run that failed in its last epoch."""
    with pytest.raises(ValueError, match="broken on purpose"):
        run(*overrides, "+callbacks.breaks={_target_:breaking.BreakAt,rank:0,epoch:1,how:raise}")
    return sorted(Path().glob("run*"))[-1]


def factors(make, num_steps=100, **arguments):
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.5)
    scheduler = make(optimizer, epochs=4, num_steps_per_epoch=num_steps // 4, **arguments)
    factors_by_step = []
    for _ in range(num_steps):
        factors_by_step.append(optimizer.param_groups[0]["lr"] / 0.5)
        optimizer.step()
        scheduler.step()
    return factors_by_step, optimizer.param_groups[0]["lr"] / 0.5


@pytest.mark.unit
def test_warm_up_is_followed_by_a_cosine():
    factors_by_step, last = factors(CosineWarmup, warmup_fraction=0.1, end=0.2)
    assert factors_by_step[:11] == pytest.approx([number / 11 for number in range(1, 12)])
    assert factors_by_step[10:] == pytest.approx([0.2 + 0.4 * (1 + math.cos(math.pi * n / 90)) for n in range(90)])
    assert last == pytest.approx(0.2)


@pytest.mark.unit
def test_cosine_without_warm_up_equals_torch():
    factors_by_step, _ = factors(CosineWarmup, warmup_fraction=0.0, end=0.0)
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    for factor in factors_by_step:
        assert factor == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


@pytest.mark.unit
def test_one_cycle_is_piecewise_linear():
    factors_by_step, last = factors(OneCycle, warmup_fraction=0.25, start=0.04, end=0.0)
    assert factors_by_step[0] == 0.04 and max(factors_by_step) == factors_by_step[25] == 1.0 and last == 0.0
    assert np.diff(factors_by_step[:26]) == pytest.approx(np.full(25, 0.96 / 25))
    assert np.diff(factors_by_step[25:]) == pytest.approx(np.full(74, -1 / 75))


@pytest.mark.parametrize("scheduler", ["cosine_warmup", "one_cycle"])
def test_a_schedule_per_step_ends_at_the_last_step(scheduler):
    folder = run(f"scheduler={scheduler}", "optimizer.lr=0.01", "training.steps_per_execution=3")
    rates = read_epochs(folder)["lr"]
    assert 0 < rates[0] < 0.01 and rates[1] == 0
    assert checkpoint(folder)["lr_schedulers"][0]["last_epoch"] == 2 * 8


def test_a_schedule_per_step_does_not_depend_on_step_groups():
    one, other = (run("scheduler=one_cycle", f"training.steps_per_execution={n}") for n in (1, 3))
    assert read_epochs(one)[LOSSES].equals(read_epochs(other)[LOSSES])


def test_training_with_all_adaptive_options_learns():
    few_of_mnist = [*QUICK, "dataset.limit=1500", "training.epochs=2"]
    laptime.run([*few_of_mnist, *ADAPTIVE, "optimizer.lr=0.003", "hydra.run.dir=run"])
    epochs = read_epochs(Path("run"))
    assert epochs["train_loss"][1] < epochs["train_loss"][0]
    assert epochs["val_accuracy"][1] > 0.8


@pytest.mark.parametrize(
    "overrides",
    [
        ADAPTIVE,
        ["scheduler=cosine_warmup", "training.swa_start_epoch=0"],
        ["training.swa_start_epoch=1"],
    ],
    ids=["ema", "swa", "swa from its first epoch"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(overrides):
    whole = run(*overrides)
    broken = failed_run(*overrides)
    resumed = run(*overrides, f"training.checkpoint={broken}")
    assert read_epochs(whole)[LOSSES].iloc[-1:].values.tolist() == read_epochs(resumed)[LOSSES].values.tolist()
    whole_weights, resumed_weights = checkpoint(whole), checkpoint(resumed)
    for part in ("state_dict", "trained_state_dict"):
        assert all(torch.equal(whole_weights[part][name], resumed_weights[part][name]) for name in whole_weights[part])
    assert whole_weights["num_averaged"] == resumed_weights["num_averaged"]


@pytest.mark.soak
@pytest.mark.parametrize("hook", ["none", "shared_memory"])
def test_two_resumed_ranks_equal_uninterrupted_ones(hook, breaking, train):
    overrides = [
        *TINY, *ADAPTIVE, "strategy.world_size=2", f"strategy.comm_hook={hook}", "training.epochs=3",
        "+callbacks.breaks={_target_:breaking.BreakAt,rank:1,epoch:2,how:kill,once:true}", "strategy.max_restarts=1",
    ]  # fmt: skip
    for folder in ("broken_run", "whole_run"):  # the first run leaves a file, so that the second does not fail
        done = train(*overrides, f"hydra.run.dir={folder}")
        assert done.returncode == 0, done.stderr
    whole_weights, resumed_weights = checkpoint(Path("whole_run")), checkpoint(Path("broken_run"))
    for part in ("state_dict", "trained_state_dict"):
        assert all(torch.equal(whole_weights[part][name], resumed_weights[part][name]) for name in whole_weights[part])


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.ema_decay=0.95", "model.dropout=0"],
        ["training.swa_start_epoch=0", "model._target_=batch_normed.BatchNormed"],
        pytest.param(["training.ema_decay=0.95", "training.compile=true"], marks=pytest.mark.soak),
        pytest.param(
            ["training.swa_start_epoch=0", "model=resnet18", "dataset.limit=200", "training.batch_size=10"],
            marks=pytest.mark.soak,
        ),
    ],
    ids=["ema", "swa with batch norm", "ema, compiled", "swa of ResNet-18"],
)
def test_the_averaged_weights_are_both_evaluated_and_saved(overrides):
    overrides = [*QUICK, "dataset.limit=1500", "training.epochs=2", *overrides]
    folder = Path("run")
    laptime.run([*overrides, f"hydra.run.dir={folder}"])
    saved, epochs = checkpoint(folder), read_epochs(folder)
    config = composed(*overrides)
    network = targets.build("model", config.model, nn.Module, input_shape=(1, 28, 28), num_classes=10)
    arguments = {key: value for key, value in config.dataset.items() if key != "_target_"}
    _, test, _ = MNIST(**arguments).load()
    mean, std = MNIST.mean[0], MNIST.std[0]
    images, labels = (test.images / 255 - mean) / std, test.labels
    images, labels = images[: config.dataset["limit"]], labels[: config.dataset["limit"]]
    loss_by_part = {}
    for part in ("state_dict", "trained_state_dict"):
        network.load_state_dict({name.removeprefix("network."): value for name, value in saved[part].items()})
        with torch.no_grad():
            loss_by_part[part] = F.cross_entropy(network.eval()(images), labels).item()
    record = read_record(folder)
    assert record["result"]["test_loss"] == pytest.approx(loss_by_part["state_dict"], rel=1e-4)
    assert abs(loss_by_part["trained_state_dict"] - loss_by_part["state_dict"]) > 1e-3
    assert epochs["val_loss"].iloc[-1] == record["result"]["val_loss"]


def test_averaging_affects_evaluation_but_not_training():
    one, other = run("training.ema_decay=0.95"), run()
    assert read_epochs(one)["train_loss"].equals(read_epochs(other)["train_loss"])
    trained = checkpoint(one)["trained_state_dict"]
    assert all(torch.equal(trained[name], value) for name, value in checkpoint(other)["state_dict"].items())
    assert not read_epochs(one)["val_loss"].equals(read_epochs(other)["val_loss"])


@pytest.mark.unit
def test_the_moving_average_by_hand():
    network = nn.Linear(1, 1, bias=False)
    average = WeightAverage(network, ema_decay=0.75)
    for value in (4.0, 8.0, 0.0):
        with torch.no_grad():
            network.weight.fill_(value)
        average.after_step()
    average.swap()
    assert network.weight.item() == 0.75 * (0.75 * 4 + 0.25 * 8)
    average.swap()
    assert network.weight.item() == 0


@pytest.mark.unit
def test_the_equal_average_by_hand():
    network = nn.BatchNorm1d(1)
    average = WeightAverage(network, swa_start_epoch=1)
    for epoch, value in enumerate((100.0, 1.0, 2.0, 6.0)):
        network.running_mean.fill_(value)
        average.after_step()
        average.after_epoch(epoch)
    average.swap()
    assert network.running_mean.item() == pytest.approx(3)
    assert average.num_averaged == 3


@pytest.mark.unit
def test_a_weight_that_is_used_twice_has_one_average():
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    network[1].weight = network[0].weight
    average = WeightAverage(network, ema_decay=0.5)
    for value in (2.0, 4.0):
        nn.init.constant_(network[0].weight, value)
        average.after_step()
    saved = average.averaged(network.state_dict(), "")
    assert [value.item() for value in saved.values()] == [3, 3]
    average.swap()
    assert network[1].weight.item() == 3


def test_validation_loss_is_plain_cross_entropy():
    one, other = (run("optimizer.lr=1e-9", f"training.label_smoothing={value}") for value in ("0.5", "0"))
    assert read_epochs(one)["val_loss"].values == pytest.approx(read_epochs(other)["val_loss"].values, rel=1e-5)
    assert read_epochs(one)["train_loss"][0] != pytest.approx(read_epochs(other)["train_loss"][0], rel=1e-3)


@pytest.mark.unit
def test_mixup_by_hand():
    mixup = Mixup(1.0)
    mixup.start(3)
    images = torch.tensor([0.0, 10.0, 20.0]).view(3, 1, 1, 1)
    mixed, others, lam = mixup(images, torch.tensor([0, 1, 2]))
    assert 0.5 <= lam <= 1 and others.tolist() == [2, 1, 0]
    assert mixed.flatten().tolist() == pytest.approx([20 * (1 - lam), 10, 20 * lam])
    logits = torch.randn(3, 5)
    soft = lam * F.one_hot(torch.tensor([0, 1, 2]), 5) + (1 - lam) * F.one_hot(others, 5)
    for smoothing in (0.0, 0.2):
        loss = mixed_loss(logits, torch.tensor([0, 1, 2]), others, lam, smoothing)
        assert loss.item() == pytest.approx(F.cross_entropy(logits, soft, label_smoothing=smoothing).item())


@pytest.mark.parametrize("key", ["training.steps_per_execution=1", "training.num_microbatches=2"])
def test_mixup_does_not_depend_on_step_groups_or_microbatches(key, trained):
    one, other = trained(*SHORT, *MIXUP), run(*MIXUP, key)
    assert read_epochs(one)["train_loss"].values == pytest.approx(read_epochs(other)["train_loss"].values, rel=1e-4)


def test_mixup_depends_on_the_seed_only(trained):
    runs = [trained(*SHORT, *MIXUP), run(*MIXUP), run(*MIXUP, "seed=2")]
    losses = [read_epochs(folder)["train_loss"].tolist() for folder in runs]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.unit
def test_ranks_draw_different_lam():
    drawn = []
    for rank in (0, 1):
        mixup = Mixup(1.0)
        mixup.start(epoch_seed(1, 0, rank))
        drawn.append(mixup(torch.zeros(1, 1, 1, 1), torch.zeros(1, dtype=torch.int64))[2])
    assert drawn[0] != drawn[1]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("key", "refused", "accepted"),
    [
        ("training.label_smoothing", ["-0.1", "1", "nan"], ["0", "0.999"]),
        ("training.mixup_alpha", ["-0.1", "1001", "nan"], ["0", "0.01", "1000"]),
        ("training.ema_decay", ["0", "1", "nan"], ["0.001", "0.9999", "null"]),
        ("training.swa_start_epoch", ["-1", "5"], ["0", "4", "null"]),
    ],
)
def test_ranges(key, refused, accepted):
    for value in accepted:
        validate(composed(f"{key}={value}"))
    for value in refused:
        with pytest.raises(UserError, match=rf"^{key}={value.replace('.', '[.]')}"):
            validate(composed(f"{key}={value}"))


@pytest.mark.unit
def test_two_kinds_of_averages_are_refused():
    with pytest.raises(UserError, match=r"ema_decay=0.9.*Set one of them to null"):
        composed("training.ema_decay=0.9", "training.swa_start_epoch=1")


@pytest.mark.parametrize("key", ["warmup_fraction", "end"])
def test_a_fraction_out_of_range_is_refused(key):
    for value in ("1", "-0.1"):
        with pytest.raises(UserError, match=rf"scheduler\.{key}={value}"):
            run("scheduler=one_cycle", f"scheduler.{key}={value}")


@pytest.mark.unit
@pytest.mark.parametrize(
    "override",
    [
        "training.label_smoothing=0.1",
        "training.mixup_alpha=0.2",
        "training.ema_decay=0.9",
        "training.swa_start_epoch=1",
    ],
)
def test_an_adaptive_option_that_is_on_changes_the_hashes(override):
    on, off = composed(override), composed()
    hashes = [config_hashes(hashed_config(config, "cpu", 1, 1)) for config in (on, off)]
    assert hashes[0][0] != hashes[1][0] and hashes[0][1] != hashes[1][1]
    assert identity(on.as_dict(), 1) != identity(off.as_dict(), 1)


@pytest.mark.unit
def test_adaptive_options_that_are_off_change_no_hash_and_no_checkpoint():
    hashed = hashed_config(composed(), "cpu", 1, 1)
    keys = {"label_smoothing", "mixup_alpha", "ema_decay", "swa_start_epoch"}
    assert not keys & {key.removeprefix("training.") for key in hashed}
    assert not keys & {key.removeprefix("training.") for key in identity(composed().as_dict(), 1)}


def test_a_checkpoint_of_a_schedule_with_another_length_is_refused():
    broken = run("scheduler=one_cycle")
    with pytest.raises(UserError, match=r"scheduler\.epochs is 2 in the checkpoint, 3 in the run"):
        run("scheduler=one_cycle", "training.epochs=3", f"training.checkpoint={broken}")
