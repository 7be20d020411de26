"""Outcomes of the runs of a sweep, noted by its own process and by the processes of a launcher."""

import os
import pickle
from pathlib import Path

import pytest

from laptime.sweeps import outcomes
from laptime.sweeps.outcomes import OUTCOMES_DIR, Outcome, OutcomeStore

pytestmark = pytest.mark.unit


@pytest.fixture
def store(work_folder: Path) -> OutcomeStore:
    return OutcomeStore(work_folder, is_one_process=False)


@pytest.fixture
def copy_in_other_process(store, monkeypatch) -> OutcomeStore:
    """The copy in another process."""
    copy = pickle.loads(pickle.dumps(store))
    monkeypatch.setattr(copy, "_owner", os.getpid() + 1)
    return copy


def test_the_process_of_the_sweep_writes_no_files(store, work_folder):
    store.note(Outcome("1 (seed=2)", "begun"))
    store.note(Outcome("1 (seed=2)", "completed"))
    store.note(Outcome("0 (seed=1)", "failed", "broken", 1))
    assert [(outcome.number, outcome.status) for outcome in store.all()] == [(0, "failed"), (1, "completed")]
    assert list(work_folder.iterdir()) == []


def test_outcomes_of_other_processes_are_read_until_they_are_removed(store, copy_in_other_process, work_folder):
    store.note(Outcome("0 (seed=1)", "completed"))
    copy_in_other_process.note(Outcome("1 (seed=2)", "begun"))
    copy_in_other_process.note(Outcome("1 (seed=2)", "failed", "broken", 3))
    (work_folder / OUTCOMES_DIR / "2.json").write_text("{")  # cut short
    assert [(outcome.number, outcome.message, outcome.exit_code) for outcome in store.all()] == [
        (0, "", 0),
        (1, "broken", 3),
    ]
    store.forget()
    assert [outcome.number for outcome in store.all()] == [0] and list(work_folder.iterdir()) == []


def test_any_process_stops_the_sweep(store, copy_in_other_process):
    assert store.stopped() is None
    copy_in_other_process.stop(130)
    assert store.stopped() == copy_in_other_process.stopped() == 130


def test_stopping_exits_a_sweep_of_one_process(work_folder):
    with pytest.raises(SystemExit) as end:
        OutcomeStore(work_folder, is_one_process=True).stop(143)
    assert end.value.code == 143 and list(work_folder.iterdir()) == []


def test_a_full_disk_loses_only_the_outcome(copy_in_other_process, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outcomes, "write_atomically", full)
    copy_in_other_process.note(Outcome("1 (seed=2)", "begun"))
    copy_in_other_process.stop(1)
    assert copy_in_other_process.all() == [] and copy_in_other_process.stopped() is None


def test_records_of_killed_processes_are_marked_as_failed(store, work_folder, monkeypatch):
    ended = []
    monkeypatch.setattr(outcomes, "mark_launcher_died", lambda path, message: ended.append((path.name, message)))
    monkeypatch.setattr(outcomes.psutil, "pid_exists", lambda pid: pid == 7)
    for number, (status, pid, host) in enumerate(
        [("begun", 8, None), ("begun", 7, None), ("completed", 8, None), ("begun", 8, "another")]
    ):
        (work_folder / str(number)).mkdir()
        where = {} if host is None else {"host": host}
        store.note(Outcome(f"{number} (seed={number})", status, pid=pid, **where))
    store.note(Outcome("9 (seed=9)", "begun", pid=8))  # has no directory
    store.end_records()
    assert ended == [("0", outcomes.KILLED)]
