"""`latest` is the run or sweep that started last by its record, independent of the times of files."""

import os
import shutil
from pathlib import Path

import pytest
from tests.support.records import new_record, write_record

from laptime.analysis.__main__ import latest_sweep
from laptime.record import files as records
from laptime.record.latest import newest, newest_run, newest_runs, newest_sweeps
from laptime.record.plan import write_plan
from laptime.sweeps.resume import _list_newest

pytestmark = pytest.mark.unit

HOUR_S = 3600.0
NOON = 1_600_000_000.0


def make_run(path: str, hour: float, **changes: object) -> Path:
    """A run that started this many hours after noon. Its files have the current time."""
    run = Path(path)
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints/last.ckpt").touch()
    record = new_record()
    record["started_at"] = records.timestamp(NOON + hour * HOUR_S)
    record["run_dir"] = str(run.absolute())
    write_record(run, record | changes)
    return run


def make_sweep(path: str, hour: float) -> Path:
    make_run(f"{path}/0", hour)
    Path(path, records.SWEEP_FILE).touch()
    return Path(path)


def test_the_run_that_started_last_is_the_newest_even_if_another_was_touched(work_folder):
    newest_ = make_run("outputs/day/new", 3)
    old = make_run("outputs/day/deep/old", 1)
    make_run("multirun/day/0", 2)
    (old / "1").touch()
    os.utime(old / records.RUN_FILE)
    assert newest_runs()[0] == newest_run("run") == newest_
    assert [run.name for run in newest_runs()] == ["new", "0", "old"]


def test_a_copy_comes_after_its_original(work_folder):
    old = make_run("outputs/b", 1)
    shutil.copytree(old, "outputs/a")  # with times of now, as cp -r gives them, and before it by name
    shutil.copytree(old, "outputs/c")
    assert newest_runs()[0] == old
    newest_ = make_run("outputs/0", 2)
    assert newest_runs()[0] == newest_


def test_links_to_folders_are_followed_and_cycles_end(work_folder):
    make_run("outputs/day/old", 1)
    elsewhere = make_run("elsewhere/new", 2)
    Path("outputs/linked").symlink_to(elsewhere.parent.absolute())
    (elsewhere.parent / "back").symlink_to(Path("outputs").absolute())
    assert [run.name for run in newest_runs()] == ["new", "old"]
    sweep = make_sweep("elsewhere/sweep", 3)
    Path("multirun").mkdir()
    Path("multirun/linked").symlink_to(sweep.absolute())
    assert newest_sweeps() == [Path("multirun/linked")]


def test_a_run_counts_by_its_last_start(work_folder):
    first = make_run("outputs/first", 1, attempts=[{"started_at": records.timestamp(NOON + 9 * HOUR_S)}])
    make_run("outputs/second", 2)
    assert newest_runs()[0] == first


def test_times_with_another_time_zone_are_compared_correctly(work_folder):
    make_run("outputs/here", 0, started_at="2027-01-15T12:00:00+00:00")
    remote = make_run("outputs/remote", 0, started_at="2027-01-15T08:30:00-05:00")
    assert newest_runs()[0] == remote


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, '{"started_at": 5, "attempts": 3, "config": 1}'])
def test_a_run_with_an_unreadable_record_comes_last(content, work_folder):
    readable = make_run("outputs/readable", 1)
    damaged = make_run("outputs/damaged", 2)
    (damaged / records.RUN_FILE).write_text(content)
    assert newest_runs() == [readable, damaged]


def test_earlier_files_of_a_restarted_run_are_no_run(work_folder):
    run = make_run("outputs/a", 1)
    make_run("outputs/a/earlier/0", 2)
    assert newest_runs() == [run]


def test_only_runs_with_the_requested_file_are_found(work_folder):
    older = make_run("outputs/older", 1)
    shutil.rmtree(make_run("outputs/newer", 2) / "checkpoints")
    assert newest_runs(holding="checkpoints/last.ckpt") == [older]


@pytest.mark.parametrize("folder", [".", "absent"])
def test_folders_without_runs(folder, work_folder):
    assert newest_runs([Path(folder)]) == newest_sweeps([Path(folder)]) == []


def test_a_sweep_counts_by_its_last_start(work_folder):
    old, new = make_sweep("multirun/old", 1), make_sweep("multirun/new", 2)
    os.utime(old / records.SWEEP_FILE)
    (old / "summary").mkdir()
    assert newest_sweeps() == [new, old]
    assert latest_sweep() == new
    assert _list_newest().index("new") < _list_newest().index("old")
    write_plan(old, {0: ""}, starts=True)  # as resuming it does, before a run of it has started
    write_plan(new, {0: "", 1: ""})  # a run is added to what has started before
    assert newest_sweeps() == [old, new]


def test_watch_takes_the_run_or_sweep_that_started_last(work_folder):
    sweep, run = make_sweep("multirun/sweep", 2), make_run("outputs/run", 1)
    os.utime(run)
    assert newest() == [sweep, run]
    later = make_run("outputs/later", 3)
    assert newest()[0] == later
