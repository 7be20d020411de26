"""The context of each run of a sweep: the value of `threads_per_rank=auto`, for any number of concurrent runs."""

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


@pytest.mark.parametrize(
    ("largest", "num_concurrent", "threads"), [(1, 1, 8), (4, 1, 2), (2, 2, 2), (3, 1, 2), (16, 1, 1)]
)
def test_auto_threads_depend_on_the_largest_world_size_and_the_concurrent_runs(largest, num_concurrent, threads):
    slots = CoreSlots(num_concurrent, ()) if num_concurrent > 1 else None
    assert SweepCores(largest, slots).context() == SweepContext(threads, runs_at_once=num_concurrent)


def test_a_pinned_run_divides_its_own_cores_only(monkeypatch, tmp_path):
    cores = SweepCores(2, CoreSlots(2, ()))  # this system can't pin a process: both runs have all cores
    with cores.take(tmp_path / "slots") as context:
        assert context == SweepContext(2, runs_at_once=2)
    pinned = SweepCores(2, CoreSlots(2, (0, 1, 2, 3, 4, 5, 6, 7)))
    monkeypatch.setattr("os.sched_setaffinity", lambda pid, cores: None)
    monkeypatch.setattr("laptime.machine.device.usable_cores", lambda: 4)
    with pinned.take(tmp_path / "slots") as context:
        assert context == SweepContext(2, runs_at_once=2)


def test_a_resumed_sweep_keeps_its_threads():
    assert SweepCores(1, threads=3).context().threads_per_rank == 3


def test_a_run_of_a_sweep_has_its_threads_and_trains_in_other_processes():
    config = changed(strategy={"world_size": 1})
    assert threads_per_rank(config, SweepContext(2)) == 2
    assert threads_per_rank(changed(strategy={"threads_per_rank": 5}), SweepContext(2)) == 5
    assert not trains_in_this_process(config, SweepContext(2))


def test_the_only_run_of_a_sweep_belongs_to_the_sweep():
    """Its label is empty, because nothing is swept."""
    directory = Path("/somewhere/multirun/evening/0")
    assert Run.of(directory, "now", None, label="").sweep == "multirun/evening"
    assert Run.of(directory, "now", None, label=None).sweep is None
    assert Run.of(directory, "now", None, label="").name == "evening/0"
