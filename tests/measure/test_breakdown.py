"""Separate steps after the epochs, with real ranks and gradients: what they measure, and that results don't change."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.support.settings import TINY

import laptime
from laptime.record.files import read_epochs, read_record
from laptime.record.schema import PHASES

SHORT = (*TINY, "training.epochs=2")
MEASURED = (*SHORT, "measure.breakdown=true")
TWO_RANKS = (*MEASURED, "strategy.world_size=2")
NUM_PARAMETERS = (64 * 16 + 16) + (16 * 10 + 10)


@pytest.fixture
def two_ranks(trained) -> Path:
    """A run of two ranks, shared by tests."""
    return trained(*TWO_RANKS, "logger=tensorboard")


def test_two_ranks_record_what_synchronization_costs(two_ranks):
    record = read_record(two_ranks)
    comm, contention = record["communication"], record["contention"]
    assert comm["num_all_reduces_per_step"] == 1
    assert comm["bytes_per_step"] == 4 * NUM_PARAMETERS
    assert comm["step_s"] == pytest.approx(comm["compute_s"] + comm["exposed_s"])
    assert comm["comm_s"] == pytest.approx(comm["exposed_s"] + comm["overlap_s"])
    assert comm["share"] == pytest.approx(comm["exposed_s"] / comm["step_s"])
    assert comm["cost_s"] == pytest.approx(comm["step_s"] - contention["no_sync_step_s"])
    assert comm["isolated_all_reduce_s"] > 0
    assert contention["no_sync_step_s"] > 0
    assert contention["straggler_delay"] >= 0 and record["timing"]["straggler_delay"] >= 0
    events = EventAccumulator(str(two_ranks / "tensorboard"))
    events.Reload()
    (share,) = events.Scalars("comm/share")
    assert share.value == pytest.approx(comm["share"], rel=1e-5)
    assert {"comm/exposed_s", "contention/no_sync_step_s", "time/straggler_delay"} <= set(events.Tags()["scalars"])


def test_waiting_for_gradients_is_a_phase_with_several_ranks(two_ranks):
    phases = read_record(two_ranks)["breakdown"]
    assert phases["communication_s"] > 0
    assert phases["step_s"] == pytest.approx(sum(phases[f"{phase}_s"] or 0 for phase in PHASES))


def test_the_separate_steps_do_not_change_weights_results_or_epochs(two_ranks, trained):
    folders = two_ranks, trained(*SHORT, "strategy.world_size=2")
    with_steps, without = (read_record(folder) for folder in folders)
    assert without["communication"]["step_s"] is None and with_steps["communication"]["step_s"] is not None
    assert with_steps["config_hash"] == without["config_hash"]
    for key in ("train_loss", "val_loss", "test_loss", "test_accuracy"):
        assert with_steps["result"][key] == without["result"][key]
    columns = ["epoch", "rank", "num_samples", "train_loss"]
    pd.testing.assert_frame_equal(*(read_epochs(folder)[columns] for folder in folders))
    one, other = (torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for folder in folders)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("overrides", "num_all_reduces", "num_bytes"),
    [
        (["strategy.comm_hook=fp16"], 1, 2 * NUM_PARAMETERS),
        (["training.num_microbatches=4"], 1, 4 * NUM_PARAMETERS),
        # A bucket is full at 0.5 MB: the first has the 512 x 256 weights and the later layers, the second the rest.
        (
            ["model.hidden_sizes=[512,256]", "strategy.bucket_cap_mb=0.5"],
            2,
            4 * (64 * 512 + 512 + 512 * 256 + 256 + 256 * 10 + 10),
        ),
        pytest.param(["strategy.comm_hook=bf16"], 1, 2 * NUM_PARAMETERS, marks=pytest.mark.soak),
        pytest.param(["strategy.gradient_as_bucket_view=true"], 1, 4 * NUM_PARAMETERS, marks=pytest.mark.soak),
        pytest.param(["strategy.static_graph=true"], 1, 4 * NUM_PARAMETERS, marks=pytest.mark.soak),
    ],
)
def test_the_number_of_bytes_sent_follows_the_settings(overrides, num_all_reduces, num_bytes, trained):
    comm = read_record(trained(*TWO_RANKS, *overrides))["communication"]
    assert (comm["num_all_reduces_per_step"], comm["bytes_per_step"]) == (num_all_reduces, num_bytes)


@pytest.mark.soak
def test_powersgd_sends_two_factors_of_rank_four(trained):
    biases, rows_and_columns = 256 + 10, (64 + 256) + (256 + 10)
    run_dir = trained(*TWO_RANKS, "model.hidden_sizes=[256]", "strategy.comm_hook=powersgd")
    comm = read_record(run_dir)["communication"]
    assert comm["num_all_reduces_per_step"] == 3  # the uncompressed biases, and two factors
    assert comm["bytes_per_step"] == 4 * (biases + 4 * rows_and_columns)


def test_a_single_process_has_no_sync_steps_and_no_communication(trained):
    record = read_record(trained(*MEASURED))
    assert set(record["communication"].values()) == {None}
    assert record["contention"]["no_sync_step_s"] > 0
    assert record["contention"]["straggler_delay"] is record["timing"]["straggler_delay"] is None


def test_one_rank_with_ddp_is_measured(trained):
    record = read_record(trained(*MEASURED, "strategy.wrap_single_rank=true"))
    assert record["communication"]["bytes_per_step"] == 4 * NUM_PARAMETERS
    assert record["contention"]["straggler_delay"] is None


@pytest.mark.soak
def test_data_workers_are_supported(trained):
    record = read_record(trained(*TWO_RANKS, "dataset.pipeline=workers", "dataset.num_workers=1"))
    assert record["communication"]["step_s"] > 0


@pytest.mark.soak
def test_a_slow_rank_shows_as_straggler_delay(trained):
    record = read_record(trained(*TWO_RANKS, "model._target_=slow_ranks.SlowInRankOne", "dataset.num_train=160"))
    # The median of two is their mean, so the delay of a sleeping rank over a very fast one approaches 1. More than 0.4
    # means that the fast rank takes less than 43% of the slow rank's time.
    assert record["contention"]["straggler_delay"] > 0.4
    # In the epochs the fast rank waits for the slow one in every step.
    assert record["timing"]["straggler_delay"] < record["contention"]["straggler_delay"] / 2
    assert record["communication"]["share"] > 0.2, "the fast rank counts the slow one's delay as communication"


def test_the_phases_of_a_step_add_up_to_it(trained):
    record = read_record(trained(*MEASURED))
    phases = record["breakdown"]
    named = [phases[f"{phase}_s"] for phase in ("data", "forward", "backward", "optimizer")]
    assert all(seconds > 0 for seconds in named)
    assert phases["communication_s"] is None and phases["host_to_device_s"] is None  # not applicable here
    assert phases["step_s"] == pytest.approx(sum(named) + phases["rest_s"])
    num_steps = 8
    epochs_step_s = record["timing"]["epoch_time_s"] / num_steps
    apart_step_s = phases["step_s"] + phases["epoch_start_s"] / num_steps
    assert phases["instrument_s"] == pytest.approx(apart_step_s - epochs_step_s)
    percentiles = [phases[f"step_{name}_s"] for name in ("p50", "p95", "p99")]
    given = [seconds for seconds in percentiles if seconds is not None]  # p95 needs 20 steps, p99 100
    assert len(given) == 1 + (phases["num_steps"] >= 20) + (phases["num_steps"] >= 100)
    assert given == sorted(given) and given[0] > 0


@pytest.mark.parametrize(
    "overrides",
    [
        ["dataset.pipeline=workers", "dataset.num_workers=1"],
        ["training.num_microbatches=4"],
        ["training.precision=bf16-mixed"],
        ["training.gradient_clip_norm=1"],
        ["dataset.limit=80"],  # an epoch of two steps
        ["dataset.num_train=680"],  # an epoch of 17 steps, where a step group has 16
    ],
    ids=["workers", "accumulation", "bf16", "clipping", "few", "one more than a step group"],
)
def test_every_kind_of_step_is_instrumented(overrides):
    phases = laptime.run([*MEASURED, *overrides])["breakdown"]
    assert phases["step_s"] == pytest.approx(sum(phases[f"{phase}_s"] or 0 for phase in PHASES))
    assert min(phases[f"{phase}_s"] for phase in ("forward", "backward", "optimizer")) > 0
