"""The status of runs: heartbeats, clocks of other machines, trainings that Laptime only timed."""

import os
import time
from pathlib import Path

import pytest
from tests.support import processes
from tests.support.processes import until
from tests.support.records import EPOCH_ROW, append_epochs, write_record

from laptime.record.files import read_record
from laptime.record.heartbeat import DEAD_AFTER_S, HEARTBEAT_FILE, keep_heartbeat
from laptime.watch.status import Watcher

SCRIPTS = Path(__file__).parents[1] / "user_classes"


def beat(run: Path, at: float) -> None:
    (run / HEARTBEAT_FILE).touch()
    os.utime(run / HEARTBEAT_FILE, (at, at))


def statuses(watcher: Watcher) -> list[str]:
    return [run.status for run in watcher.look().runs]


@pytest.mark.unit
def test_a_run_with_a_heartbeat_is_running_and_the_others_wait(running, clock):
    beat(running, time.time())
    watcher = Watcher(running.parent, clock)
    assert statuses(watcher) == ["running", "waiting", "waiting"]
    assert not watcher.look().is_over


@pytest.mark.unit
def test_a_training_by_steps_has_laps(running):
    record = read_record(running)
    record["config"]["training"] |= {"max_steps": 60, "lap_steps": 10}
    write_record(running, record)
    assert Watcher(running.parent).look().runs[0].num_epochs == 6


@pytest.mark.unit
def test_a_run_whose_heartbeat_stopped_is_dead(running, clock):
    beat(running, time.time() - DEAD_AFTER_S - 1)
    watcher = Watcher(running.parent, clock)
    seen = watcher.look()
    assert [run.status for run in seen.runs] == ["dead", "waiting", "waiting"] and not seen.is_over
    clock.now += DEAD_AFTER_S
    assert watcher.look().is_over


@pytest.mark.unit
@pytest.mark.parametrize("skew", [-86400.0, 86400.0])
def test_the_clock_of_another_machine_may_be_wrong_while_the_heartbeat_changes(skew, running, clock):
    watcher = Watcher(running.parent, clock)
    for step in range(5):
        beat(running, time.time() + skew + 2 * step)
        seen = watcher.look()
        clock.now += 2
    assert seen.runs[0].status == "running" and not seen.is_over
    clock.now += DEAD_AFTER_S
    assert statuses(watcher)[0] == "dead"


@pytest.mark.unit
@pytest.mark.parametrize("config", [None, {"training": "mine", "run_label": [1]}, {"training": {"epochs": "many"}}])
def test_a_training_that_laptime_only_timed_has_no_known_end(config, running, watch):
    record = read_record(running) | {"config": config, "run_label": None}
    record["lap"]["timer"] = "LapTimer"
    write_record(running, record)
    append_epochs(running, [EPOCH_ROW, EPOCH_ROW | {"epoch": 2, "num_samples": None}])
    (seen,) = Watcher(running).look().runs
    assert (seen.status, seen.num_epochs_done, seen.num_epochs) == ("running", 3, None)
    assert (seen.epoch_time_s, seen.overrides) == (1.25, "")
    shown = watch(str(running), "--once").stdout
    assert " 3 " in shown and "left" not in shown


@pytest.mark.unit
def test_the_heartbeat_lasts_as_long_as_the_work(work_folder):
    with keep_heartbeat(work_folder):
        until((work_folder / HEARTBEAT_FILE).exists)
    assert not (work_folder / HEARTBEAT_FILE).exists()


@pytest.mark.unit
def test_a_heartbeat_that_cannot_be_written_is_ignored(work_folder):
    with keep_heartbeat(work_folder / "nowhere"):
        pass


def test_a_sweep_whose_process_on_this_machine_ended_is_over_immediately(running):
    assert processes.run(running.parent, script=SCRIPTS / "reserve_directory.py").returncode == 0
    beat(running, time.time() - DEAD_AFTER_S - 1)
    seen = Watcher(running.parent).look()
    assert seen.is_over and [run.status for run in seen.runs] == ["dead", "waiting", "waiting"]
