"""strategy.shard_optimizer: each rank updates a shard; weights and checkpoints equal those of one optimizer."""

import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from tests.support.settings import TINY

from laptime.ranks.sharded_optimizer import reason_not_to_shard
from laptime.ranks.shared_memory import shard_range
from laptime.record.files import CHECKPOINT_DIR, LAST_CHECKPOINT, read_epochs, read_record

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shared memory of this kind is Linux's")

# One thread per rank, as in TINY: with several, torch's vectorized loops split elsewhere and may round differently.
GLOO = [*TINY, "training.epochs=2", "strategy.world_size=2"]
SHARED = [*GLOO, "strategy.comm_hook=shared_memory"]
LOSSES = ["epoch", "rank", "train_loss", "train_accuracy", "val_loss", "val_accuracy"]


def losses(folder: Path) -> pd.DataFrame:
    return read_epochs(folder)[LOSSES]


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / CHECKPOINT_DIR / LAST_CHECKPOINT, weights_only=True)


def is_sharded(folder: Path) -> bool:
    return read_record(folder)["strategy"]["shards_optimizer"]


def without(overrides: list[str], *prefixes: str) -> list[str]:
    return [override for override in overrides if not override.startswith(prefixes)]


ADAM = ["optimizer=adam", "scheduler=cosine"]
PARTLY_UNUSED = ["model._target_=sharding_cases.PartlyUnused", "~model.hidden_sizes", "~model.dropout"]
SOAK = pytest.mark.soak


@pytest.mark.soak
@pytest.mark.parametrize(
    "overrides",
    [
        ADAM,
        pytest.param(["optimizer=adamw", "scheduler=plateau"], marks=SOAK),
        ["optimizer=sgd", "optimizer.lr=0.1"],
        pytest.param(["optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=false"], marks=SOAK),
        pytest.param(["optimizer._target_=torch.optim.Adagrad", "~optimizer.fused"], marks=SOAK),
        ["optimizer._target_=sharding_cases.decay_by_shape", "~optimizer.fused"],
        [*PARTLY_UNUSED, "strategy.static_graph=true"],
        pytest.param(["optimizer._target_=torch.optim.NAdam", "~optimizer.fused"], marks=SOAK),
        pytest.param(["model=cnn", "dataset.limit=500"], marks=SOAK),
        pytest.param(["strategy.world_size=3"], marks=SOAK),
    ],
)
def test_a_checkpoint_equals_that_of_one_optimizer(trained, overrides):
    """Weights, optimizer state and scheduler settings have the same bits as with gloo."""
    gloo, shared = GLOO, SHARED
    if overrides[:3] == PARTLY_UNUSED:
        gloo, shared = without(GLOO, "model."), without(SHARED, "model.")
    elif "model=cnn" in overrides:  # on MNIST
        gloo, shared = (without(base, "model.", "dataset") for base in (GLOO, SHARED))
    gloo, shared = trained(*gloo, *overrides), trained(*shared, *overrides)
    assert is_sharded(shared) and not is_sharded(gloo)
    exact = "strategy.world_size=3" not in overrides
    pd.testing.assert_frame_equal(losses(shared), losses(gloo), check_exact=exact, rtol=1e-4)
    ours, theirs = checkpoint(shared), checkpoint(gloo)
    if overrides[:3] == PARTLY_UNUSED:  # a weight without elements has no state to keep
        assert theirs["optimizer_states"][0]["state"].pop(0)["exp_avg"].numel() == 0
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-2, "atol": 1e-4}
    for key in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(ours[key], theirs[key], **tolerance)
    if exact:
        assert ours["lr_schedulers"] == theirs["lr_schedulers"]


@pytest.mark.soak
@pytest.mark.parametrize("later", [SHARED, GLOO], ids=["sharded", "not sharded"])
def test_a_run_resumes_sharded_or_not(trained, later):
    undisturbed = trained(*SHARED, "training.epochs=4")
    first = trained(*SHARED)
    resumed = trained(*later, "training.epochs=4", f"training.checkpoint={first}")
    pd.testing.assert_frame_equal(losses(resumed), losses(undisturbed)[4:].reset_index(drop=True), check_exact=True)
    torch.testing.assert_close(
        checkpoint(resumed)["optimizer_states"], checkpoint(undisturbed)["optimizer_states"], rtol=0, atol=0
    )


@pytest.mark.soak
def test_weights_that_a_callback_moved_are_an_error(train):
    moves = "+callbacks.moves._target_=sharding_cases.MoveWeights"
    done = train(*SHARED, moves)
    assert done.returncode == 2
    assert "other memory" in done.stderr and "Use strategy.shard_optimizer=false" in done.stderr
    done = train(*SHARED, moves, "strategy.shard_optimizer=false")
    assert done.returncode == 0, done.stderr


def test_sharding_can_be_turned_off(trained):
    shared, whole = trained(*SHARED), trained(*SHARED, "strategy.shard_optimizer=false")
    assert is_sharded(shared) and not is_sharded(whole)
    pd.testing.assert_frame_equal(losses(shared), losses(whole), check_exact=True)


def test_the_bare_loop_learns_the_same(trained):
    folder = trained(*SHARED, "measure.bare_loop=true")
    assert not is_sharded(folder), "the bare loop updates all weights on each rank, so the run must do so too"
    record = read_record(folder)
    assert record["bare_loop"]["train_loss"] == pytest.approx(record["result"]["train_loss"], rel=1e-4)
    assert "did not do the same work" not in (folder / "train.log").read_text()


def test_schedulers_do_not_warn_that_no_step_was_taken(train):
    done = train(*SHARED, "scheduler=step")
    assert done.returncode == 0 and "lr_scheduler.step()" not in done.stderr


@pytest.mark.soak
def test_steps_without_synchronization_update_all_weights_on_each_rank(trained):
    record = read_record(trained(*SHARED, "measure.breakdown=true"))
    assert record["breakdown"]["communication_s"] > 0
    assert record["breakdown"]["optimizer_s"] > 0
    assert record["contention"]["no_sync_step_s"] > 0


@pytest.mark.parametrize(
    ("override", "words", "advice"),
    [
        ("training.gradient_clip_norm=1", "true: training.gradient_clip_norm=1 needs ", "shard_optimizer=auto"),
        ("optimizer._target_=sharding_cases.OwnAdam", "true: OwnAdam may need whole weights", "shard_optimizer=auto"),
        ("strategy.comm_hook=none", "true: needs strategy.comm_hook=shared_memory, not none", ""),
        ("strategy.shard_optimizer=perhaps", "shard_optimizer=perhaps: must be true, false or auto", ""),
    ],
)
def test_shard_optimizer_true_is_refused_where_sharding_is_impossible(train, override, words, advice):
    done = train(*SHARED, "strategy.shard_optimizer=true", override)
    assert done.returncode == 2
    assert words in done.stderr and advice in done.stderr


def test_shard_optimizer_auto_does_not_shard_where_it_is_impossible(trained):
    assert not is_sharded(trained(*SHARED, "training.gradient_clip_norm=0.5"))


@pytest.mark.unit
def test_parameters_with_gaps_in_memory_are_not_sharded():
    for parameter in (torch.tensor(1.0), torch.zeros(4, 6)[:, ::2]):
        optimizer = torch.optim.SGD([torch.nn.Parameter(parameter)], lr=0.1)
        assert "can't be sharded" in reason_not_to_shard(optimizer, None)
    assert reason_not_to_shard(torch.optim.SGD([torch.nn.Parameter(torch.zeros(4, 6).t())], lr=0.1), None) is None


@pytest.mark.unit
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("num_elements", [0, 1, 63, 64, 65, 1000, 401_408])
def test_shards_cover_each_element_once(num_elements, world_size):
    shards = [shard_range(num_elements, rank, world_size) for rank in range(world_size)]
    assert [element for shard in shards for element in shard] == list(range(num_elements))
