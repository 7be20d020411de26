"""Sweeps whose runs go on at once, in processes that Hydra's launchers start: real ones, small."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from laptime.core_shares import CoreShares
from laptime.device import usable_cores
from laptime.record import read_record
from laptime.run_dir import numbered_runs

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["dataset.limit=1000", "training.epochs=2", "logger=none", "measure.breakdown=false", "measure.peak=false"]
AT_ONCE = min(2, usable_cores())
pytestmark = pytest.mark.slow


def records(sweep: str) -> list[dict]:
    paths = [path for _, path in sorted(numbered_runs(Path(sweep)).items())]
    return [read_record(path) for path in paths if (path / "run.json").exists()]


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_runs_go_on_at_once_each_with_cores_of_its_own(launcher, train):
    ended = train("-m", *QUICK, "seed=1,2", f"hydra/launcher={launcher}", "hydra.sweep.dir=s")
    assert ended.returncode == 0, ended.stderr
    found = records("s")
    assert [record["status"] for record in found] == ["completed"] * 2
    are_confined = len(os.sched_getaffinity(0)) == usable_cores()  # not where a quota, not a set of cores, is the limit
    for record in found:
        assert record["config"]["runs_at_once"] == AT_ONCE
        assert record["environment"]["num_usable_cores"] == usable_cores() // (AT_ONCE if are_confined else 1)
        assert record["strategy"]["threads_per_rank"] == usable_cores() // AT_ONCE
        assert f"{AT_ONCE} runs at once shared the machine" in record["quality"]["reasons"]
    assert "2 runs" in ended.stdout and Path("s/summary/report.html").exists()
    assert not Path("s/.outcomes").exists()


def test_they_are_other_runs_than_those_that_had_the_machine_to_themselves(train):
    assert train("-m", *QUICK, "seed=1", "strategy.threads_per_rank=1", "hydra.sweep.dir=alone").returncode == 0
    typed = ["seed=1,2", "strategy.threads_per_rank=1", "hydra/launcher=joblib", "hydra.sweep.dir=together"]
    assert train("-m", *QUICK, *typed).returncode == 0
    (alone,), (together, _) = records("alone"), records("together")
    assert alone["config_hash"] != together["config_hash"]
    assert alone["result"]["test_loss"] == together["result"]["test_loss"]


def test_a_failed_one_is_named_and_the_sweep_is_gone_on_with(train):
    typed = ["optimizer=sgd", "optimizer.lr=0.01,1e30", "hydra/launcher=joblib", "hydra.sweep.dir=s"]
    ended = train("-m", *QUICK, *typed)
    assert ended.returncode == 1
    assert "1 of 2 runs of the sweep failed:\n  1 (optimizer.lr=1e+30): the loss became" in ended.stderr
    resumed = train("sweep.resume=s", "hydra/launcher=joblib")
    assert "run 0 (optimizer.lr=0.01): completed, skipped" in resumed.stderr
    assert "run 1 (optimizer.lr=1e+30): failed (the loss became" in resumed.stderr
    assert sorted(numbered_runs(Path("s"))) == [0, 1]


def test_no_further_run_begins_where_a_failed_one_stops_the_sweep(train):
    typed = ["optimizer=sgd", "optimizer.lr=1e30,0.01,0.02,0.03", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]
    ended = train("-m", *QUICK, *typed, "sweep.on_failure=stop", "hydra.sweep.dir=s")
    assert ended.returncode == 1 and "3 of 4 runs of the sweep were not started" in ended.stderr


def test_a_signal_ends_all_of_them_between_two_steps(work_folder):
    command = [sys.executable, str(ROOT / "train.py"), "-m", *QUICK, "training.epochs=5000", "seed=1,2,3"]
    process = subprocess.Popen(
        [*command, "hydra/launcher=joblib", "hydra.sweep.dir=s"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while sum(1 for _ in Path("s").glob("*/epochs.csv")) < AT_ONCE:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert [record["status"] for record in records("s")] == ["interrupted"] * AT_ONCE
    assert "To finish it: sweep.resume=s" in out and "runs of the sweep were not started" in err


KILLS = """
import psutil
from pytorch_lightning.callbacks import Callback


class Kills(Callback):
    '''Ends the process that runs the job, whose rank this is a process of, by way of the server of its ranks.'''

    def __init__(self, seed):
        self.seed = seed

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1 and self.seed == 1:
            psutil.Process().parent().parent().kill()
"""

# A grid tries every value once. Trials that are drawn may all be the one that kills nothing.
GRID_OF_TWO = ["hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "hydra.sweeper.n_trials=2"]


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
@pytest.mark.parametrize("search", [[], GRID_OF_TWO], ids=["sweep", "search"])
def test_a_process_that_was_killed_is_said_in_a_line(search, launcher, train, work_folder):
    (work_folder / "odd.py").write_text(KILLS)
    kills = ["+callbacks.x._target_=odd.Kills", "+callbacks.x.seed=choice(1,2)"]
    ended = train(
        "-m", *QUICK, *kills, "training.epochs=50", f"hydra/launcher={launcher}", "hydra.sweep.dir=s", *search
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr, ended.stderr
    assert "error: the launcher gave up" in ended.stderr and "its process was ended" in ended.stderr, ended.stderr
    assert "running" not in {record["status"] for record in records("s")}


@pytest.mark.parametrize("number", ["0", "1000", "-1000"])
def test_more_at_once_than_there_are_cores_is_refused(number, train, work_folder):
    ended = train("-m", *QUICK, "seed=1,2", "hydra/launcher=joblib", f"hydra.launcher.n_jobs={number}")
    assert ended.returncode == 2 and f"hydra.launcher.n_jobs={number}: must be at least 1" in ended.stderr
    assert list(work_folder.iterdir()) == []


def test_what_it_is_filled_in_with_cannot_be_typed(train):
    assert "error: runs_at_once=3: is filled in" in train(*QUICK, "runs_at_once=3").stderr


@pytest.mark.parametrize(
    ("choice", "package", "extra"),
    [
        ("hydra/launcher=joblib", "hydra_joblib_launcher", "joblib"),
        ("hydra/launcher=submitit_local", "hydra_submitit_launcher", "submitit"),
        ("hydra/sweeper=optuna", "hydra_optuna_sweeper", "search"),
    ],
)
def test_a_missing_plugin_names_the_extra_to_install(choice, package, extra, work_folder):
    code = (
        f"import sys\nfor name in ('', '.config', '.{package.removeprefix('hydra_')}', '._impl'):\n"
        f"    sys.modules['hydra_plugins.{package}' + name] = None\n"
        "import pkgutil\nwalk = pkgutil.walk_packages\n"
        f"pkgutil.walk_packages = lambda *a, **k: (each for each in walk(*a, **k) if '{package}' not in each.name)\n"
        "from laptime.cli import main\nmain(sys.argv[1:])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, "-m", "model.dropout=0.1,0.2", choice], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2, ended.stderr
    assert f'{choice}: is not installed. Install it: pip install "laptime[{extra}]".' in ended.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system can't confine a process to cores")
def test_a_process_gets_the_part_that_it_has_had_before(work_folder):
    before = os.sched_getaffinity(0)
    cores = tuple(sorted(before))
    shares = CoreShares(min(2, len(cores)), cores)
    try:
        for _ in range(2):
            with shares.take(work_folder):
                first = os.sched_getaffinity(0)
                assert len(first) == len(cores) // shares.num
            with shares.take(work_folder):
                assert os.sched_getaffinity(0) == first
    finally:
        os.sched_setaffinity(0, before)
