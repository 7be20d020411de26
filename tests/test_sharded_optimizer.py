"""strategy.shard_optimizer: each rank updates a share; what is learnt and saved is what one optimizer would give."""

import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import laptime
from laptime.errors import UserError
from laptime.record import CHECKPOINT_DIR, LAST_CHECKPOINT, read_epochs, read_record
from laptime.sharded_optimizer import reason_against
from laptime.shared_memory import share_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shared memory of this kind is Linux's")

# One thread: torch's vectorised loops end elsewhere with several, and round a last element otherwise.
GLOO = ["device=cpu", "dataset.limit=2000", "training.epochs=3", "logger=none", "callbacks.progress_bar=null",
        "measure.breakdown=false", "measure.peak=false", "strategy.threads_per_rank=1",
        "strategy.world_size=2"]  # fmt: skip
SHARED = [*GLOO, "strategy.comm_hook=shared_memory"]
LOSSES = ["epoch", "rank", "train_loss", "train_accuracy", "val_loss", "val_accuracy"]


def run(*overrides: str) -> Path:
    folder = Path(f"run{len(list(Path().glob('run*')))}")
    laptime.run([*overrides, f"hydra.run.dir={folder}"])
    return folder


def losses(folder: Path) -> pd.DataFrame:
    return read_epochs(folder)[LOSSES]


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / CHECKPOINT_DIR / LAST_CHECKPOINT, weights_only=True)


def is_sharded(folder: Path) -> bool:
    return read_record(folder)["strategy"]["shards_optimizer"]


ODD = """
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn

def by_shape(params, lr, weight_decay):
    "No weight decay for biases, as is usual."
    params = list(params)
    groups = [
        {"params": [each for each in params if each.ndim > 1], "weight_decay": 0.5},
        {"params": [each for each in params if each.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr)

class Net(nn.Module):
    "One layer trains, one is never used, and a parameter has no elements."
    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.used = nn.Linear(784, num_classes)
        self.unused = nn.Linear(20, 30)
        self.nothing = nn.Parameter(torch.empty(0))

    def forward(self, images):
        return self.used(images.flatten(1)) + self.nothing.sum()

class Rebind(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        weights = list(pl_module.parameters())
        nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(weights), weights)
"""


@pytest.fixture
def odd(work_folder, monkeypatch):
    """What users have and shares could get wrong, importable as `odd`."""
    (work_folder / "odd.py").write_text(ODD)
    monkeypatch.syspath_prepend(str(work_folder))


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer=adam", "scheduler=cosine"],
        ["optimizer=adamw", "scheduler=plateau"],
        ["optimizer=sgd", "optimizer.lr=0.1"],
        ["optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=false"],
        ["optimizer._target_=torch.optim.Adagrad", "~optimizer.fused"],
        ["optimizer._target_=odd.by_shape", "~optimizer.fused"],
        ["model._target_=odd.Net", "~model.hidden_sizes", "~model.dropout", "strategy.static_graph=true"],
        ["optimizer._target_=torch.optim.NAdam", "~optimizer.fused"],
        ["model=cnn", "dataset.limit=500"],
        ["strategy.world_size=3"],
    ],
)
def test_a_checkpoint_holds_what_one_optimizer_would(odd, overrides):
    """Weights, the optimizer's whole state, settings that the scheduler moved: the same bits as over gloo."""
    gloo, shared = run(*GLOO, *overrides), run(*SHARED, *overrides)
    assert is_sharded(shared) and not is_sharded(gloo)
    exact = "strategy.world_size=3" not in overrides
    pd.testing.assert_frame_equal(losses(shared), losses(gloo), check_exact=exact, rtol=1e-4)
    ours, theirs = checkpoint(shared), checkpoint(gloo)
    if "model._target_=odd.Net" in overrides:  # of a weight without elements there is no state to keep
        assert theirs["optimizer_states"][0]["state"].pop(0)["exp_avg"].numel() == 0
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-2, "atol": 1e-4}
    for key in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(ours[key], theirs[key], **tolerance)
    if exact:
        assert ours["lr_schedulers"] == theirs["lr_schedulers"]


@pytest.mark.parametrize("later", [SHARED, GLOO])
def test_a_run_is_gone_on_from_with_shares_or_without(work_folder, later):
    undisturbed = run(*SHARED, "training.epochs=4")
    first = run(*SHARED, "training.epochs=2")
    resumed = run(*later, "training.epochs=4", f"training.checkpoint={first}")
    pd.testing.assert_frame_equal(losses(resumed), losses(undisturbed)[4:].reset_index(drop=True), check_exact=True)
    torch.testing.assert_close(
        checkpoint(resumed)["optimizer_states"], checkpoint(undisturbed)["optimizer_states"], rtol=0, atol=0
    )


def test_weights_that_were_put_elsewhere_are_missed(odd):
    with pytest.raises(UserError, match=r"other memory.*Use strategy.shard_optimizer=false"):
        run(*SHARED, "+callbacks.rebind._target_=odd.Rebind")
    run(*SHARED, "+callbacks.rebind._target_=odd.Rebind", "strategy.shard_optimizer=false")


def test_it_can_be_left_out(work_folder):
    shared, whole = run(*SHARED), run(*SHARED, "strategy.shard_optimizer=false")
    assert is_sharded(shared) and not is_sharded(whole)
    pd.testing.assert_frame_equal(losses(shared), losses(whole), check_exact=True)


def test_the_bare_loop_learns_the_same_beside_it(work_folder):
    folder = run(*SHARED, "measure.bare_loop=true")
    assert not is_sharded(folder), "the loop updates all weights on each rank: other work"
    found = read_record(folder)
    assert found["bare_loop"]["train_loss"] == pytest.approx(found["result"]["train_loss"], rel=1e-4)
    assert "not the same work" not in (folder / "train.log").read_text()


def test_schedulers_do_not_complain_that_no_step_was_taken(train):
    done = train(*SHARED, "scheduler=step")
    assert done.returncode == 0 and "lr_scheduler.step()" not in done.stderr


def test_steps_without_synchronisation_are_each_ranks_own(work_folder):
    found = read_record(run(*SHARED, "measure.breakdown=true"))
    assert found["breakdown"]["communication_s"] > 0
    assert found["breakdown"]["optimizer_s"] > 0
    assert found["contention"]["no_sync_step_s"] > 0


@pytest.mark.parametrize(
    "typed, words",
    [
        (["training.gradient_clip_norm=1"], r"true: training.gradient_clip_norm=1 needs .*shard_optimizer=auto"),
        (["optimizer._target_=own_adam.OwnAdam"], r"true: OwnAdam may look at more than .*shard_optimizer=auto"),
        (["strategy.comm_hook=none"], r"true: needs strategy.comm_hook=shared_memory, not none"),
        (["strategy.shard_optimizer=perhaps"], r"shard_optimizer=perhaps: must be true, false or auto"),
    ],
)
def test_what_can_not_be_shared_out_is_refused_where_it_was_asked_for(work_folder, monkeypatch, typed, words):
    (work_folder / "own_adam.py").write_text("import torch\n\nclass OwnAdam(torch.optim.Adam):\n    pass\n")
    monkeypatch.syspath_prepend(str(work_folder))
    with pytest.raises(UserError, match=words):
        run(*SHARED, "strategy.shard_optimizer=true", *typed)


def test_what_can_not_be_shared_out_is_averaged_whole_otherwise(work_folder):
    folder = run(*SHARED, "training.gradient_clip_norm=0.5")
    assert not is_sharded(folder)


def test_parameters_that_fill_no_stretch_of_memory_are_not_shared_out():
    for parameter in (torch.tensor(1.0), torch.zeros(4, 6)[:, ::2]):
        optimizer = torch.optim.SGD([torch.nn.Parameter(parameter)], lr=0.1)
        assert "can't be shared out" in reason_against(optimizer, None)
    assert reason_against(torch.optim.SGD([torch.nn.Parameter(torch.zeros(4, 6).t())], lr=0.1), None) is None


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("num_elements", [0, 1, 63, 64, 65, 1000, 401_408])
def test_shares_make_up_the_whole(num_elements, world_size):
    shares = [share_of(num_elements, rank, world_size) for rank in range(world_size)]
    assert [element for share in shares for element in share] == list(range(num_elements))
