"""Planning a resumed sweep: refusals, dry runs, processes that are still alive, and numbers of runs."""

import json
import os
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.support.configs import changed
from tests.support.records import write_record

from laptime.config.schema import Config
from laptime.errors import UserError
from laptime.machine.device import cpu_name, usable_cores
from laptime.machine.environment import environment
from laptime.record import files as records
from laptime.record.directory import hostname_hash
from laptime.record.files import read_record
from laptime.record.plan import read_plan, write_plan
from laptime.record.run_record import RunRecord
from laptime.record.schema import Strategy
from laptime.sweeps.earlier import EarlierRun, running_ranks
from laptime.sweeps.overrides import merge_overrides, split_resume_override
from laptime.sweeps.resume import open_sweep

SWEEP = Path("multirun/sweep")


@pytest.fixture
def ended_early(two_runs: Path) -> None:
    """A sweep of three that ended after two."""
    write_plan(SWEEP, {0: "seed=1", 1: "seed=2", 2: "seed=3"})
    path = SWEEP / "multirun.yaml"
    path.write_text(path.read_text().replace("seed=1,2", "seed=1,2,3"))


def change(run: Path, **sections: Any) -> None:
    record = read_record(run)
    for name, values in sections.items():
        record[name] = (record[name] or {}) | values if isinstance(values, dict) else values
    write_record(run, record)


def times(sweep: Path) -> dict[Path, float]:
    """Modification times of all files, without the mark of the process that uses the sweep."""
    return {path: path.stat().st_mtime for path in sweep.rglob("*") if path.name != ".laptime"}


# Refusals.


@pytest.mark.unit
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "sweep.resume=nowhere: there is no such directory"),
        ("plain", "sweep.resume=plain: must be a sweep"),
        ("latest", "there is no sweep below multirun/"),
    ],
)
def test_a_directory_that_is_no_sweep_is_refused(name, message, work_folder):
    Path("plain").mkdir()
    with pytest.raises(UserError) as refusal:
        open_sweep(name)
    assert message in str(refusal.value)
    assert [path.name for path in work_folder.rglob("*")] == ["plain"]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("override", "words"), [("sweep.resume=a,b", "only one sweep"), ("sweep.resume=[a", "not understood")]
)
def test_a_value_that_is_no_directory_is_refused(override, words):
    with pytest.raises(UserError, match=words):
        split_resume_override(["seed=1", override])


def test_a_refusal_is_an_exit_code_and_one_line(train, work_folder):
    ended = train("sweep.resume=nowhere")
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.startswith("error: sweep.resume=nowhere: there is no such directory")
    assert list(work_folder.iterdir()) == []


def test_a_wrong_name_lists_the_newest_sweeps(two_runs):
    with pytest.raises(UserError, match=f"The newest: {SWEEP}"):
        open_sweep("multirun/nope")


def test_a_sweep_that_is_running_is_refused(two_runs):
    other = psutil.Process(os.getppid())
    (two_runs / ".laptime").write_text(f"{other.pid} {other.create_time()} {hostname_hash()}\n")
    with pytest.raises(UserError, match=rf"this sweep is still running \(process {other.pid}\)"):
        open_sweep("latest")
    (two_runs / ".laptime").unlink()
    started = records.timestamp(psutil.Process().create_time())
    change(two_runs / "1", status="running", started_at=started, strategy={"rank_pids": [os.getpid()]})
    with pytest.raises(UserError, match=rf"run 1 is still running \(process {os.getpid()}\)"):
        open_sweep("latest")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("hydra.sweep.dir=other", "hydra.sweep.dir=other: can't be changed"),
        ("training.epocs=2", "Did you mean training.epochs?"),
        ("strategy.threads_per_rank=0", "at least 1"),
    ],
)
def test_invalid_overrides_change_nothing(override, words, two_runs, train):
    before = times(two_runs)
    ended = train("sweep.resume=latest", override)
    assert ended.returncode == 2 and words in ended.stderr and "Traceback" not in ended.stderr
    assert times(two_runs) == before


# Merged overrides.


@pytest.mark.unit
@pytest.mark.parametrize(
    ("before", "added", "result"),
    [
        (["seed=1,2", "model=cnn"], ["seed=3"], ["seed=3", "model=cnn"]),
        (["model=mlp"], ["model=cnn", "training.epochs=2"], ["model=cnn", "training.epochs=2"]),
        (["+model.x=1"], ["model.x=2"], ["+model.x=2"]),
        (["model.x=1"], ["++model.x=2"], ["++model.x=2"]),
        (["+model.x=1", "seed=1"], ["~model.x"], ["seed=1"]),
        (["model.x=1"], ["~model.x"], ["~model.x"]),
        (["~callbacks.progress_bar"], ["seed=1"], ["~callbacks.progress_bar", "seed=1"]),
    ],
)
def test_overrides_typed_now_replace_earlier_ones(before, added, result):
    assert merge_overrides(before, added) == result


# Processes that are still alive.


def earlier_run(pid: int, started: float, host: str | None = None) -> EarlierRun:
    here = environment(cpu_name(), usable_cores())
    record = RunRecord(started_at=records.timestamp(started), environment=here)
    here.hostname_hash = host or here.hostname_hash
    record.strategy = Strategy(world_size=1, threads_per_rank=1, oversubscribed=False, rank_pids=[pid])
    record.write(Path())
    return EarlierRun(0, Path(), record, [])


def test_a_process_that_reused_the_pid_of_a_rank_is_no_rank(work_folder):
    pid, born = os.getpid(), psutil.Process().create_time()
    assert running_ranks(earlier_run(pid, born)) == [pid]
    assert running_ranks(earlier_run(pid, born + 1000)) == [], "the run started after this process"
    assert running_ranks(earlier_run(pid, born, host="another machine")) == []
    run = earlier_run(pid, born - 1000)
    os.utime("run.json", (born - 500, born - 500))
    assert running_ranks(run) == [], "the record was last written before this process started"


# Threads.


def config_of(world_size: int, threads: int | str) -> Config:
    return changed(device={"name": "cpu"}, strategy={"world_size": world_size, "threads_per_rank": threads})


def test_auto_threads_keep_their_earlier_value(two_runs, monkeypatch):
    monkeypatch.setattr("laptime.machine.device.usable_cores", lambda: 4)
    for run in (two_runs / "0", two_runs / "1"):
        config = read_record(run)["config"]
        config["strategy"]["threads_per_rank"] = "auto"
        change(run, config=config, strategy={"threads_per_rank": 2})
    sweep = open_sweep(str(two_runs))
    assert sweep.cores([config_of(1, "auto")]).threads_per_rank() == 2
    assert sweep.cores([config_of(2, "auto"), config_of(1, 1)]).threads_per_rank() == 2
    assert sweep.cores([config_of(4, 1)]).threads_per_rank() == 1
    with pytest.raises(UserError, match="means 1 with up to 4 ranks on 4 cores, but meant 2 in sweep"):
        sweep.cores([config_of(1, "auto"), config_of(4, "auto")])


# Dry runs.


def test_a_dry_run_shows_runs_outside_of_the_request(ended_early, train):
    done = train("sweep.resume=latest", "seed=1", "sweep.dry_run=true")
    shown = " ".join(done.stdout.split())
    assert "not started; not part of this command" in shown and "sweep.dry_run" not in shown


def test_an_empty_run_directory_keeps_its_place_in_the_plan(ended_early, train):
    (SWEEP / "2").mkdir()
    done = train("sweep.resume=latest", "seed=0,1,2,3", "sweep.dry_run=true")
    rows = [line.split() for line in done.stdout.splitlines() if "seed=" in line]
    assert {row[1]: row[3] for row in rows} == {"0": "seed=1", "1": "seed=2", "2": "seed=3", "3": "seed=0"}


def test_a_dry_run_changes_no_file(two_runs, train):
    (SWEEP / ".laptime").unlink()
    before = {path: path.read_bytes() for path in SWEEP.rglob("*") if path.is_file()}
    assert train("sweep.resume=latest", "seed=1,2,3", "sweep.dry_run=true").returncode == 0
    assert {path: path.read_bytes() for path in SWEEP.rglob("*") if path.is_file()} == before


def test_a_tampered_plan_sends_no_control_codes_and_takes_no_number(two_runs, train):
    plan = {"runs": {"-1": "seed=4", "7" * 30: "seed=5", "1": "seed=2\x1b[31m", "2": "seed=3"}}
    (SWEEP / "plan.json").write_text(json.dumps(plan))
    done = train("sweep.resume=latest", "seed=1,2,4", "sweep.dry_run=true")
    assert "\x1b" not in done.stdout + done.stderr
    assert read_plan(SWEEP) == {1: "seed=2\\x1b[31m", 2: "seed=3"}
    row = next(line for line in done.stdout.splitlines() if "seed=4" in line)
    assert row.split()[1] == "3"
