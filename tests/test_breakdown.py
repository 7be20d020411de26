"""Steps apart from the epochs: real ranks, real gradients; what they measure and that they leave no trace."""

import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import laptime
from laptime.record import PARTS, read_epochs

QUICK = ["dataset.limit=2000", "training.epochs=2", "training.batch_size=32", "device=cpu"]
MLP_PARAMETERS = 535_818


def run(*overrides: str) -> dict:
    return laptime.run([*QUICK, *overrides])


def test_two_ranks_tell_what_synchronisation_costs():
    record = run("strategy.world_size=2", "hydra.run.dir=here")
    comm, contention = record["communication"], record["contention"]
    assert comm["num_all_reduces_per_step"] == 1
    assert comm["bytes_per_step"] == 4 * MLP_PARAMETERS
    assert comm["step_s"] == pytest.approx(comm["compute_s"] + comm["exposed_s"])
    assert comm["comm_s"] == pytest.approx(comm["exposed_s"] + comm["overlap_s"])
    assert comm["share"] == pytest.approx(comm["exposed_s"] / comm["step_s"])
    assert comm["cost_s"] == pytest.approx(comm["step_s"] - contention["no_sync_step_s"])
    assert comm["bare_all_reduce_s"] > 0
    assert contention["no_sync_step_s"] > 0
    assert contention["straggling"] >= 0 and record["timing"]["straggling"] >= 0
    events = EventAccumulator("here/tensorboard")
    events.Reload()
    (share,) = events.Scalars("comm/share")
    assert share.value == pytest.approx(comm["share"], rel=1e-5)
    assert {"comm/exposed_s", "contention/no_sync_step_s", "time/straggling"} <= set(events.Tags()["scalars"])


def test_the_steps_leave_no_trace_in_weights_results_or_epochs():
    with_steps, without = (
        run("strategy.world_size=2", "logger=none", f"measure.breakdown={value}", f"hydra.run.dir=run_{value}")
        for value in ("true", "false")
    )
    assert without["communication"]["step_s"] is None and with_steps["communication"]["step_s"] is not None
    assert with_steps["config_hash"] == without["config_hash"]
    for key in ("train_loss", "val_loss", "test_loss", "test_accuracy"):
        assert with_steps["result"][key] == without["result"][key]
    columns = ["epoch", "rank", "num_samples", "train_loss"]
    pd.testing.assert_frame_equal(read_epochs(Path("run_true"))[columns], read_epochs(Path("run_false"))[columns])
    one, other = (
        torch.load(f"run_{value}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for value in ("true", "false")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("overrides", "num_all_reduces", "num_bytes"),
    [
        (["strategy.comm_hook=fp16"], 1, 2 * MLP_PARAMETERS),
        (["strategy.comm_hook=bf16"], 1, 2 * MLP_PARAMETERS),
        (["training.accumulate_grad_batches=4"], 1, 4 * MLP_PARAMETERS),
        # Buckets of 1 MB and more: 512 x 256 weights and what is after them, then the 784 x 512.
        (["strategy.bucket_cap_mb=0.5"], 2, 4 * MLP_PARAMETERS),
        (["strategy.gradient_as_bucket_view=true"], 1, 4 * MLP_PARAMETERS),
        (["strategy.static_graph=true"], 1, 4 * MLP_PARAMETERS),
    ],
)
def test_what_is_sent_follows_the_settings(overrides, num_all_reduces, num_bytes):
    comm = run("strategy.world_size=2", "logger=none", *overrides)["communication"]
    assert (comm["num_all_reduces_per_step"], comm["bytes_per_step"]) == (num_all_reduces, num_bytes)


def test_powersgd_sends_a_fraction():
    comm = run("strategy.world_size=2", "logger=none", "strategy.comm_hook=powersgd")["communication"]
    assert comm["num_all_reduces_per_step"] == 3  # what it leaves as it is, and two factors
    assert comm["bytes_per_step"] < MLP_PARAMETERS / 5


def test_a_plain_process_has_a_step_to_compare_with_and_no_communication():
    record = run("logger=none")
    assert set(record["communication"].values()) == {None}
    assert record["contention"]["no_sync_step_s"] > 0
    assert record["contention"]["straggling"] is record["timing"]["straggling"] is None


def test_one_rank_with_ddp_is_measured_too():
    record = run("logger=none", "strategy.wrap_single_rank=true")
    assert record["communication"]["bytes_per_step"] == 4 * MLP_PARAMETERS
    assert record["contention"]["straggling"] is None


def test_data_workers_are_no_hindrance():
    record = run("logger=none", "strategy.world_size=2", "dataset.pipeline=workers", "dataset.num_workers=1")
    assert record["communication"]["step_s"] > 0


SLOW_RANK = """
import time
import torch.distributed as dist
from laptime.models.mlp import MLP

class SlowRank(MLP):
    def forward(self, images):
        if self.training and dist.is_initialized() and dist.get_rank() == 1:
            time.sleep(0.05)
        return super().forward(images)
"""


def test_a_slow_rank_shows_as_straggling(work_folder, monkeypatch):
    (work_folder / "slow_rank.py").write_text(SLOW_RANK)
    monkeypatch.setattr(sys, "path", [*sys.path, str(work_folder)])
    monkeypatch.setenv("PYTHONPATH", str(work_folder))
    record = run("logger=none", "strategy.world_size=2", "model._target_=slow_rank.SlowRank", "dataset.limit=500")
    # The median of two is their mean: a rank that does nearly nothing is half of it behind one that sleeps.
    assert record["contention"]["straggling"] > 0.4
    # In the epochs the fast rank waits for the slow one in every step.
    assert record["timing"]["straggling"] < record["contention"]["straggling"] / 2
    assert record["communication"]["share"] > 0.2, "to the fast rank the slow one's delay is communication"


def one_process(*overrides: str) -> dict:
    return run("strategy.threads_per_rank=1", "logger=none", *overrides)


def test_the_parts_of_a_step_add_up_to_it():
    record = one_process()
    parts = record["breakdown"]
    named = [parts[f"{part}_s"] for part in ("data", "forward", "backward", "optimizer")]
    assert all(seconds > 0 for seconds in named)
    assert parts["communication_s"] is None and parts["host_to_device_s"] is None  # there are none
    assert parts["step_s"] == pytest.approx(sum(named) + parts["rest_s"])
    num_steps = record["dataset"]["num_train"] / record["batch"]["global_batch_size"]
    epochs_step_s = record["timing"]["epoch_time_s"] / num_steps
    apart_step_s = parts["step_s"] + parts["epoch_start_s"] / num_steps
    assert parts["instrument_s"] == pytest.approx(apart_step_s - epochs_step_s)
    assert parts["num_steps"] >= 100
    assert 0 < parts["step_p50_s"] <= parts["step_p95_s"] <= parts["step_p99_s"]


def test_of_several_ranks_waiting_for_gradients_is_a_part():
    parts = run("strategy.world_size=2", "logger=none")["breakdown"]
    assert parts["communication_s"] > 0
    assert parts["step_s"] == pytest.approx(sum(parts[f"{part}_s"] or 0 for part in PARTS))


@pytest.mark.parametrize(
    "overrides",
    [
        ["dataset.pipeline=workers", "dataset.num_workers=1", "dataset.limit=500"],
        ["training.accumulate_grad_batches=4"],
        ["training.precision=bf16-mixed"],
        ["training.gradient_clip_norm=1"],
        ["dataset.limit=80"],  # an epoch of two steps
        ["dataset.limit=680"],  # and of 17, of which a list of batches holds 16
    ],
    ids=["workers", "accumulation", "bf16", "clipping", "few", "one more than a list"],
)
def test_every_kind_of_step_is_taken_apart(overrides):
    parts = one_process(*overrides)["breakdown"]
    assert parts["step_s"] == pytest.approx(sum(parts[f"{part}_s"] or 0 for part in PARTS))
    assert min(parts[f"{part}_s"] for part in ("forward", "backward", "optimizer")) > 0
