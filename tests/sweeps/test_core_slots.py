"""What each run of a sweep knows of it: the threads that `auto` stands for, wherever and however many run at once."""

from pathlib import Path

import pytest
from tests.support.configs import changed

from laptime.loggers.tracker import Run
from laptime.runner.context import SweepContext
from laptime.runner.rank_plan import threads_per_rank, trains_in_this_process
from laptime.sweeps.core_slots import CoreSlots, SweepCores

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    monkeypatch.setattr("laptime.machine.device.usable_cores", lambda: 8)


@pytest.mark.parametrize(("largest", "at_once", "threads"), [(1, 1, 8), (4, 1, 2), (2, 2, 2), (3, 1, 2), (16, 1, 1)])
def test_automatic_threads_follow_from_the_largest_run_and_the_runs_at_once(largest, at_once, threads):
    slots = CoreSlots(at_once, ()) if at_once > 1 else None
    assert SweepCores(largest, slots).context() == SweepContext(threads, runs_at_once=at_once)


def test_a_run_with_cores_of_its_own_divides_those_alone(monkeypatch, tmp_path):
    cores = SweepCores(2, CoreSlots(2, ()))  # this system can't confine a process: both runs have all cores
    with cores.take(tmp_path / "slots") as context:
        assert context == SweepContext(2, runs_at_once=2)
    confined = SweepCores(2, CoreSlots(2, (0, 1, 2, 3, 4, 5, 6, 7)))
    monkeypatch.setattr("os.sched_setaffinity", lambda pid, cores: None)
    monkeypatch.setattr("laptime.machine.device.usable_cores", lambda: 4)
    with confined.take(tmp_path / "slots") as context:
        assert context == SweepContext(2, runs_at_once=2)


def test_threads_that_a_sweep_has_had_stay():
    assert SweepCores(1, threads=3).context().threads_per_rank == 3


def test_a_run_has_the_threads_of_its_sweep_and_processes_of_its_own():
    config = changed(strategy={"world_size": 1})
    assert threads_per_rank(config, SweepContext(2)) == 2
    assert threads_per_rank(changed(strategy={"threads_per_rank": 5}), SweepContext(2)) == 5
    assert not trains_in_this_process(config, SweepContext(2))


def test_the_only_run_of_a_sweep_belongs_to_it_all_the_same():
    """It has no label, for nothing tells it from others."""
    directory = Path("/somewhere/multirun/evening/0")
    assert Run.of(directory, "now", None, label="").sweep == "multirun/evening"
    assert Run.of(directory, "now", None, label=None).sweep is None
    assert Run.of(directory, "now", None, label="").name == "evening/0"
