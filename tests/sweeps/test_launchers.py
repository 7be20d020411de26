"""Sweeps with concurrent runs, in processes that Hydra's launchers start."""

import os
import re
import signal
from pathlib import Path

import pytest
from tests.support import processes
from tests.support.processes import DEADLINE_S, TRAIN, until
from tests.support.settings import NO_REPORT, TINY

from laptime.machine.device import usable_cores
from laptime.record.directory import numbered_runs
from laptime.record.files import read_record
from laptime.sweeps.core_slots import CoreSlots

QUICK = [override for override in [*TINY, "training.epochs=2"] if not override.startswith("strategy.threads")]
SWEEP = ["-m", *QUICK, NO_REPORT, "hydra.sweep.dir=s"]
JOBLIB = "hydra/launcher=joblib"
NUM_CONCURRENT = min(2, usable_cores())
SCRIPTS = Path(processes.__file__).with_name("scripts")
FORKED_JOBS = SCRIPTS / "forked_jobs.py"
FORKED_AND_STARTED = pytest.mark.parametrize(
    "script", [FORKED_JOBS, pytest.param(TRAIN, marks=pytest.mark.soak)], ids=["forked", "started"]
)


def records(sweep: str) -> list[dict]:
    paths = [path for _, path in sorted(numbered_runs(Path(sweep)).items())]
    return [read_record(path) for path in paths if (path / "run.json").exists()]


def assert_shared_the_machine(record: dict) -> None:
    are_pinned = len(os.sched_getaffinity(0)) == usable_cores()  # runs are not pinned under a container's CPU quota
    assert record["runs_at_once"] == NUM_CONCURRENT
    assert record["environment"]["num_usable_cores"] == usable_cores() // (NUM_CONCURRENT if are_pinned else 1)
    assert record["strategy"]["threads_per_rank"] == usable_cores() // NUM_CONCURRENT
    assert f"{NUM_CONCURRENT} concurrent runs shared the machine" in record["quality"]["reasons"]


@FORKED_AND_STARTED
def test_a_failed_run_is_named_and_the_others_continue(script, train):
    """Two concurrent runs have their own cores, which their records say. The failed one can be resumed."""
    ended = processes.run(*SWEEP, "optimizer=sgd", "optimizer.lr=0.01,1e30", JOBLIB, script=script)
    assert ended.returncode == 1
    assert "1 of 2 runs of the sweep failed:\n  1 (optimizer.lr=1e+30): the loss became" in ended.stderr
    first, second = records("s")
    assert (first["status"], second["status"]) == ("completed", "failed")
    assert_shared_the_machine(first)
    assert second["runs_at_once"] == NUM_CONCURRENT
    assert not Path("s/.outcomes").exists()
    planned = train("sweep.resume=s", "sweep.dry_run=true", JOBLIB)  # a soak test runs it
    assert planned.returncode == 0, planned.stderr
    assert "completed, skipped" in planned.stdout and "failed (the loss became" in planned.stdout
    assert "1 of 2 runs to do" in planned.stdout


@pytest.mark.soak
def test_a_sweep_with_failed_runs_is_resumed_by_its_launcher(train):
    overrides = [*SWEEP, "optimizer=sgd", "optimizer.lr=0.01,1e30", JOBLIB]
    assert train(*overrides).returncode == 1
    resumed = train("sweep.resume=s", JOBLIB)
    assert "run 0 (optimizer.lr=0.01): completed, skipped" in resumed.stderr
    assert "run 1 (optimizer.lr=1e+30): failed (the loss became" in resumed.stderr
    assert sorted(numbered_runs(Path("s"))) == [0, 1]


@pytest.mark.soak
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_concurrent_runs_have_their_own_cores(launcher, train):
    ended = train("-m", *QUICK, "seed=1,2", f"hydra/launcher={launcher}", "hydra.sweep.dir=s")
    assert ended.returncode == 0, ended.stderr
    runs = records("s")
    assert [record["status"] for record in runs] == ["completed"] * 2
    for record in runs:
        assert_shared_the_machine(record)
    assert "2 runs" in ended.stdout and Path("s/summary/report.html").exists()
    assert not Path("s/.outcomes").exists()


@pytest.mark.soak
def test_concurrent_runs_have_another_hash_than_a_single_run(train):
    overrides = ["-m", *QUICK, NO_REPORT, "strategy.threads_per_rank=1"]
    assert train(*overrides, "seed=1", "hydra.sweep.dir=alone").returncode == 0
    assert train(*overrides, "seed=1,2", JOBLIB, "hydra.sweep.dir=together").returncode == 0
    (alone,), (together, _) = records("alone"), records("together")
    assert alone["config_hash"] != together["config_hash"]
    assert alone["result"]["test_loss"] == together["result"]["test_loss"]


@pytest.mark.soak
def test_no_run_starts_after_a_failed_one_stopped_the_sweep(train):
    overrides = ["optimizer=sgd", "optimizer.lr=1e30,0.01,0.02,0.03", JOBLIB, "hydra.launcher.n_jobs=1"]
    ended = train(*SWEEP, *overrides, "sweep.on_failure=stop")
    assert ended.returncode == 1 and "3 of 4 runs of the sweep were not started" in ended.stderr


@pytest.mark.soak
@FORKED_AND_STARTED
def test_a_signal_ends_all_concurrent_runs_between_two_steps(script, start):
    process = start(*SWEEP, "training.epochs=1000000", "seed=1,2,3", JOBLIB, script=script, new_session=True)
    until(lambda: sum(1 for _ in Path("s").glob("*/epochs.csv")) >= NUM_CONCURRENT, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert [record["status"] for record in records("s")] == ["interrupted"] * NUM_CONCURRENT
    assert re.search("Resume with: .*sweep.resume=s", out) and "runs of the sweep were not started" in err


# A grid tries every value once. Sampled trials might never choose the value that kills the process.
GRID_OF_TWO = ["hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "hydra.sweeper.n_trials=2"]


def assert_a_killed_process_is_reported_in_one_line(*overrides: str, script: Path = TRAIN) -> None:
    kills = ["+callbacks.x._target_=kill_job.KillJob", "+callbacks.x.seed=choice(1,2)"]
    ended = processes.run(*SWEEP, *kills, "training.epochs=50", *overrides, script=script)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr, ended.stderr
    assert "error: the launcher failed" in ended.stderr and "its process was killed" in ended.stderr, ended.stderr
    assert "running" not in {record["status"] for record in records("s")}


@pytest.mark.soak
def test_a_killed_forked_process_is_reported_in_one_line():
    assert_a_killed_process_is_reported_in_one_line(JOBLIB, script=FORKED_JOBS)


@pytest.mark.soak
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
@pytest.mark.parametrize("search", [[], GRID_OF_TWO], ids=["sweep", "search"])
def test_a_killed_process_is_reported_in_one_line(search, launcher):
    assert_a_killed_process_is_reported_in_one_line(f"hydra/launcher={launcher}", *search)


@pytest.mark.parametrize("number", ["0", "1000", "-1000"])
def test_more_concurrent_runs_than_cores_are_refused(number, train, work_folder):
    ended = train("-m", *QUICK, "seed=1,2", JOBLIB, f"hydra.launcher.n_jobs={number}")
    assert ended.returncode == 2 and f"hydra.launcher.n_jobs={number}: must be at least 1" in ended.stderr
    assert list(work_folder.iterdir()) == []


def test_runs_at_once_cannot_be_set_by_the_user(train):
    done = train(*QUICK, "runs_at_once=3")
    assert done.returncode == 2 and done.stderr.startswith("error: runs_at_once=3: ") and "joblib" in done.stderr


@pytest.mark.parametrize(
    ("choice", "package", "extra"),
    [
        ("hydra/launcher=joblib", "hydra_joblib_launcher", "joblib"),
        ("hydra/launcher=submitit_local", "hydra_submitit_launcher", "submitit"),
        ("hydra/sweeper=optuna", "hydra_optuna_sweeper", "search"),
    ],
)
def test_a_missing_plugin_names_the_extra_to_install(choice, package, extra, work_folder):
    ended = processes.run(package, "-m", "model.dropout=0.1,0.2", choice, script=SCRIPTS / "without_plugin.py")
    assert ended.returncode == 2, ended.stderr
    assert (
        f'{choice}: needs {package}, which is not installed. Install it: pip install "laptime[{extra}]".'
        in ended.stderr
    )


@pytest.fixture
def eight_cores(monkeypatch):
    """A machine with eight cores that this process may all use."""
    allowed = set(range(8))

    def pin(pid: int, cores: set[int]) -> None:
        nonlocal allowed
        allowed = set(cores)

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(allowed), raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", pin, raising=False)


@pytest.mark.unit
def test_a_process_gets_the_slot_that_it_had_before(eight_cores, work_folder):
    slots = CoreSlots(2, tuple(range(8)))
    with slots.take(work_folder), slots.take(work_folder):
        second = os.sched_getaffinity(0)
    with slots.take(work_folder):
        assert os.sched_getaffinity(0) == second


@pytest.mark.unit
def test_concurrent_runs_share_no_core(eight_cores, work_folder):
    slots = CoreSlots(3, tuple(range(8)))
    affinities = []
    with slots.take(work_folder):
        affinities.append(os.sched_getaffinity(0))
        with slots.take(work_folder):
            affinities.append(os.sched_getaffinity(0))
            with slots.take(work_folder):
                affinities.append(os.sched_getaffinity(0))
    assert [len(cores) for cores in affinities] == [2, 2, 2]
    assert len(set.union(*affinities)) == 6


def test_a_signal_before_a_run_has_written_anything_interrupts_it(call, work_folder, monkeypatch):
    monkeypatch.setattr("laptime.runner.fresh_processes.preload", lambda: None)
    monkeypatch.setattr("laptime.analysis.sweep_callback.report_sweep", lambda path: None)  # has nothing to report
    monkeypatch.setattr("laptime.sweeps.sweep.run_job", lambda *args: os.kill(os.getpid(), signal.SIGINT))
    ended = call("-m", *TINY, NO_REPORT, "seed=1,2", "hydra.sweep.dir=s")
    assert ended.returncode == 130
    assert "1 of 2 runs of the sweep were not started" in ended.stderr and "failed" not in ended.stderr
    assert "Resume with: " in ended.stdout
