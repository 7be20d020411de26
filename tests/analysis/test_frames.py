"""laptime.load: runs as data frames, with every figure and setting under its name."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from tests.support.records import write_record
from tests.support.settings import TINY

import laptime
from laptime.record.files import SWEEP_FILE, read_epochs, read_record


def test_one_row_per_run_with_figures_and_settings(scaled):
    runs = laptime.load(scaled).runs
    assert runs["run"].to_list() == [f"sweep/{number}" for number in range(1, 10)]
    assert runs["world_size"].to_list() == [1] * 3 + [2] * 3 + [4] * 3
    assert runs["seed"].to_list() == [1, 2, 3] * 3
    assert set(runs["optimizer.lr"]) == {0.001} and set(runs["device"]) == {"cpu"} and set(runs["grade"]) == {"A"}
    assert runs["group"].nunique() == 3
    assert runs["ended_at"].dtype.kind == "M" and str(runs["ended_at"].dt.tz) == "UTC"


def test_one_row_per_epoch_and_rank_joined_to_its_run(write, work_folder):
    write(Path("runs/a"), [5.0, 1.0, 2.0], world_size=2, rank_times_s=[[5.0, 1.0, 2.0], [4.0, 1.5, 1.0]])
    write(Path("runs/b"), [3.0, 2.0])
    results = laptime.load("runs")
    joined = results.epochs.merge(results.runs[["run", "world_size"]], on="run", validate="many_to_one")
    assert len(joined) == len(results.epochs) == 8
    assert joined["world_size"].to_list() == [2] * 6 + [1] * 2
    slowest = results.epochs.query("run == 'runs/a'").groupby("epoch")["epoch_time_s"].max()
    assert slowest.to_list() == [5.0, 1.5, 2.0]
    assert results.epochs["is_warmup"].dtype == bool


def test_figures_that_were_not_measured_are_missing(write, work_folder):
    write(Path("run"), [1.0, 1.0])
    results = laptime.load("run")
    assert results.runs["energy_joules"].isna().all() and results.epochs["device_memory_bytes"].isna().all()


def test_skipped_runs_are_listed_with_the_reason(write, work_folder):
    write(Path("runs/good"), [1.0, 1.0])
    write(Path("runs/bad"), [1.0, 1.0], status="failed", error={"message": "rank 1 was killed"})
    results = laptime.load("runs")
    assert results.runs["run"].to_list() == ["runs/good"] and set(results.epochs["run"]) == {"runs/good"}
    assert results.skipped.to_dict("records") == [{"run": "runs/bad", "reason": "failed: rank 1 was killed"}]


def test_the_reason_says_that_the_process_of_a_run_is_gone(write, work_folder):
    run = write(Path("run"), [1.0, 1.0], status="running")
    program = (
        "from pathlib import Path; from laptime.record.directory import claim; claim(Path('run')); print(); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "\n"  # it has claimed the directory
            assert laptime.load(run).skipped["reason"].to_list() == ["running"]
        finally:
            process.kill()
    reason = "running, but its process is gone (killed?)"
    assert laptime.load(run).skipped["reason"].to_list() == [reason]


def test_groups_and_scaling_equal_the_summary(scaled):
    results = laptime.load(scaled)
    assert results.groups["num_repeats"].to_list() == [3, 3, 3]
    measured = results.scaling[~results.scaling["projected"]]
    assert measured["speedup"].round(2).to_list() == [1.0, 1.8, 3.0]


def test_several_folders_are_loaded_without_duplicates(scaled, write):
    write(Path("other"), [1.0, 1.0])
    assert len(laptime.load("sweep", "sweep/1", "other").runs) == 10


def started_at(run: Path, when: str) -> None:
    record = read_record(run)
    record["started_at"], record["attempts"] = when, []
    write_record(run, record)


def test_latest_is_the_newest_run_or_its_whole_sweep(write, work_folder):
    started_at(write(Path("outputs/day/old"), [1.0, 1.0]), "2026-11-22T10:00:00+00:00")
    for number in "01":
        started_at(write(Path(f"multirun/day/night/{number}"), [1.0, 1.0]), "2026-11-22T11:00:00+00:00")
    Path("multirun/day/night", SWEEP_FILE).touch()
    assert len(laptime.load("latest").runs) == 2
    newest = write(Path("outputs/day/new"), [1.0, 1.0])
    started_at(newest, "2026-11-22T12:00:00+00:00")
    assert laptime.load("latest").runs["run"].to_list() == ["outputs/day/new"]


def test_no_run_at_all_gives_empty_frames(work_folder):
    results = laptime.load(".")
    assert [len(frame) for frame in (results.runs, results.epochs, results.skipped)] == [0, 0, 0]
    assert {"run", "epoch", "epoch_time_s"} <= set(results.epochs.columns) and "run" in results.runs.columns


@pytest.mark.parametrize(
    ("folders", "words"), [((), "no directory given"), (("nowhere",), "nowhere"), (("latest",), "no run")]
)
def test_a_folder_without_runs_is_an_error(folders, words, work_folder):
    with pytest.raises(laptime.UserError, match=words):
        laptime.load(*folders)


def test_a_real_run_is_loaded_with_the_values_that_it_wrote(trained):
    run = trained(*TINY, "training.epochs=2")
    record, results = read_record(run), laptime.load(str(run))
    (row,) = results.runs.to_dict("records")
    for key, value in (record["timing"] | record["result"]).items():
        if key in row and value is not None:
            assert row[key] == (value["name"] if key == "score" else value), key
    assert row["bare_loop_epoch_time_s"] is None or pd.isna(row["bare_loop_epoch_time_s"])
    assert (
        row["model_name"] == "mlp"
        and row["training.epochs"] == 2
        and row["optimizer.lr"] == record["config"]["optimizer"]["lr"]
    )
    assert json.loads(row["model.hidden_sizes"]) == [16]
    written = read_epochs(run)
    assert results.epochs[written.columns].astype(float).equals(written.astype(float))
    assert read_record(run)["config_hash"] == row["config_hash"]
