"""Counted samples are those that were trained, even if a callback skips some."""

from pathlib import Path

import pytest
from tests.support.settings import TINY

import laptime
from laptime.errors import TrainingFailed
from laptime.record.files import read_epochs

# 240 samples in eight steps, the last one of 16.
EPOCHS = (*TINY, "training.epochs=3")


def leaving_out(what: str) -> list[str]:
    return [*EPOCHS, f"+callbacks.fewer_batches={{_target_:fewer_batches.{what}}}"]


@pytest.mark.parametrize(
    ("what", "num_samples", "num_steps"),
    [
        ("LimitBatches,train:3", 96, 3),
        ("LimitBatches,train:0.5", 128, 4),
        ("HalveBatches", 120, 8),
    ],
)
def test_counted_samples_are_the_trained_samples(what, num_samples, num_steps):
    record = laptime.run([*leaving_out(what), "training.steps_per_execution=1"])
    epochs = read_epochs(Path(record["run_dir"]))
    assert set(epochs["num_samples"]) == {num_samples}
    assert epochs["samples_per_s"].to_list() == pytest.approx((num_samples / epochs["epoch_time_s"]).to_list())
    timing = record["timing"]
    assert timing["samples_per_s"] == pytest.approx(num_samples / timing["epoch_time_s"])
    assert timing["steps_per_s"] == pytest.approx(num_steps / timing["epoch_time_s"])


def test_step_groups_are_counted():
    record = laptime.run([*leaving_out("LimitBatches,train:1"), "training.steps_per_execution=3"])
    assert set(read_epochs(Path(record["run_dir"]))["num_samples"]) == {96}
    assert record["timing"]["steps_per_s"] == pytest.approx(3 / record["timing"]["epoch_time_s"])


def test_epochs_that_a_callback_ends_early_give_no_figure():
    record = laptime.run([*leaving_out("EndEpoch,batch:5"), "training.steps_per_execution=1"])
    assert read_epochs(Path(record["run_dir"])).empty
    assert {record["timing"][key] for key in ("epoch_time_s", "samples_per_s", "steps_per_s")} == {None}


@pytest.mark.parametrize("part", ["val", "test"])
def test_figures_of_a_part_of_the_samples_are_refused(part, the_run):
    with pytest.raises(TrainingFailed):
        laptime.run([*leaving_out(f"LimitBatches,{part}:1"), "training.eval_batch_size=16"])
    record = the_run()[1]
    assert record["status"] == "failed" and record["result"][f"{part}_accuracy"] is None


def test_the_bare_loop_is_not_compared_with_less_work():
    record = laptime.run(
        [*leaving_out("LimitBatches,train:3"), "measure.bare_loop=true", "training.steps_per_execution=1"]
    )
    assert record["bare_loop"]["overhead"] is None and record["timing"]["samples_per_s"] is not None
