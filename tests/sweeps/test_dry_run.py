"""Dry runs (`sweep.dry_run`) of new sweeps, and of resumed ones after real runs."""

from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.records import (
    EPOCH_ROW,
    append_epochs,
    end_attempt,
    new_record,
    start_attempt,
    update,
    write_record,
)
from tests.support.settings import NO_REPORT, TINY

from laptime.record.files import read_record
from laptime.sweeps.estimate import PastRun, estimate, past_runs

TWO_EPOCHS = (*TINY, "training.epochs=2")
TINY_SWEEP = ("-m", *TWO_EPOCHS, NO_REPORT)


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_without_past_runs_the_runs_are_listed_without_an_estimate(train, work_folder):
    done = train(*TINY_SWEEP, "seed=1,2", "model.dropout=0.1,0.2", "sweep.dry_run=true")
    assert done.returncode == 0
    shown = " ".join(done.stdout.split())
    for swept in ("seed=1 model.dropout=0.1", "seed=2 model.dropout=0.2"):
        assert swept in shown
    assert "4 of 4 runs to do; no time estimate, because no similar run was found" in shown
    assert list(work_folder.iterdir()) == []


@pytest.mark.soak
def test_a_resumed_sweep_shows_actions_and_estimates(train, work_folder):
    assert train(*TINY_SWEEP, "seed=1,2", "hydra.sweep.dir=multirun/s").returncode == 0
    before = files(work_folder)
    done = train("sweep.resume=multirun/s", "seed=1,2,3", "sweep.dry_run=true")
    assert done.returncode == 0
    shown = " ".join(done.stdout.split())
    assert shown.count("completed, skipped") == 2 and "1 of 3 runs to do, about" in shown
    assert "2 runs of the same configuration" in shown
    assert files(work_folder) == before
    # The dry run does not affect the sweep itself.
    assert train("sweep.resume=multirun/s", "seed=1,2,3").returncode == 0
    assert read_record(work_folder / "multirun/s/2")["status"] == "completed"


def test_an_invalid_value_is_refused(train, work_folder):
    done = train(*TINY_SWEEP, "training.batch_size=64,0", "sweep.dry_run=true")
    assert done.returncode == 2 and "training.batch_size=0" in done.stderr


@pytest.mark.unit
@pytest.mark.parametrize("override", ["sweep.dry_run=true", "sweep.notify=x"])
def test_sweep_keys_are_refused_for_a_single_run(override, call, work_folder):
    done = call(*TWO_EPOCHS, override)
    assert done.returncode == 2 and f"error: {override}: " in done.stderr and "Add -m" in done.stderr


def past_run(**changed) -> PastRun:
    hashed = {"model.width": 8, "training.epochs": 2, "seed": 1, "optimizer.lr": 0.1, "device": "cpu"}
    return PastRun(hashed | changed.pop("hashed", {}), **({"unit_s": 3.0, "rest_s": 1.0, "num_bytes": 100} | changed))


@pytest.mark.unit
@pytest.mark.parametrize(("timer", "num_past_runs"), [("training", 1), ("LapTimer", 0)])
def test_a_training_that_laptime_only_timed_is_no_past_run(timer, num_past_runs, work_folder):
    run = work_folder / "run"
    run.mkdir()
    record = new_record() | {"hashed_config": {"training.epochs": 2}}
    update(record, "lap", timer=timer)
    update(record, "timing", total_train_s=3.0)
    start_attempt(record, 0)
    end_attempt(record, "completed", None)
    write_record(run, record)
    append_epochs(run, [EPOCH_ROW])
    assert len(past_runs([work_folder])) == num_past_runs


@pytest.mark.unit
def test_the_time_of_epochs_scales_and_the_rest_is_added_once():
    wanted = past_run().hashed | {"training.epochs": 10, "seed": 7}
    cost = estimate(wanted, [past_run(), past_run(unit_s=5.0), past_run(unit_s=4.0)])
    assert cost is not None
    assert cost.seconds == 1.0 + 10 * 4.0 and cost.num_bytes == 100
    assert cost.basis == "3 runs of the same configuration"


@pytest.mark.unit
def test_the_time_of_steps_scales_and_epochs_tell_nothing_about_it():
    by_steps = {"training.max_steps": 100, "training.lap_steps": 10}
    hashed = {key: value for key, value in past_run().hashed.items() if key != "training.epochs"} | by_steps
    runs = [replace(past_run(unit_s=0.5), hashed=hashed), past_run(unit_s=9.0)]
    longer = estimate(hashed | {"training.max_steps": 300}, runs)
    assert longer.seconds == 1.0 + 300 * 0.5 and longer.basis == "1 run of the same configuration"
    other_laps = estimate(hashed | {"training.lap_steps": 50}, runs)
    assert other_laps.seconds == 1.0 + 100 * 0.5 and other_laps.basis.startswith("1 run with the same model")
    assert estimate(hashed, runs[1:]) is None


@pytest.mark.unit
def test_the_same_configuration_is_preferred_to_a_similar_one():
    same, similar = past_run(unit_s=3.0), past_run(unit_s=9.0, hashed={"optimizer.lr": 0.5})
    assert estimate(same.hashed, [similar, same]).seconds == 7.0
    from_similar = estimate(same.hashed, [similar])
    assert from_similar.seconds == 19.0 and from_similar.basis.startswith("1 run with the same model")
    assert estimate(same.hashed, [past_run(hashed={"model.width": 16})]) is None
