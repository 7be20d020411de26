"""Watching a sweep from its files: real sweeps, killed and whole, and records made up for what clocks do."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from laptime.heartbeat import DEAD_AFTER_S, HEARTBEAT_FILE, beating
from laptime.record import new_record, start_attempt, write_plan, write_record
from laptime.watch.__main__ import main
from laptime.watch.look import Watcher

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["dataset.limit=1000", "training.epochs=2", "logger=none", "measure.breakdown=false", "measure.peak=false"]


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def running(work_folder):
    """A made-up sweep of three runs, of which run 0 says that it runs; its directory."""
    run = work_folder / "sweep" / "0"
    run.mkdir(parents=True)
    (work_folder / "sweep" / "multirun.yaml").touch()
    record = new_record()
    record["config"] = {"training": {"epochs": 5}, "run_label": "seed=1"}
    start_attempt(record, 0)
    write_record(run, record)
    write_plan(work_folder / "sweep", {0: "seed=1", 1: "seed=2", 2: "seed=3"})
    return run


def beat(run: Path, at: float) -> None:
    (run / HEARTBEAT_FILE).touch()
    os.utime(run / HEARTBEAT_FILE, (at, at))


def statuses(watcher: Watcher) -> list[str]:
    return [run.status for run in watcher.look().runs]


def test_a_run_that_beats_runs_and_the_others_wait(running, clock):
    beat(running, time.time())
    watcher = Watcher(running.parent, clock)
    assert statuses(watcher) == ["running", "waiting", "waiting"]
    assert not watcher.look().is_over


def test_a_heartbeat_that_stopped_is_a_death(running, clock):
    beat(running, time.time() - DEAD_AFTER_S - 1)
    watcher = Watcher(running.parent, clock)
    seen = watcher.look()
    assert [run.status for run in seen.runs] == ["dead", "waiting", "waiting"] and not seen.is_over
    clock.now += DEAD_AFTER_S
    assert watcher.look().is_over


@pytest.mark.parametrize("skew", [-86400.0, 86400.0])
def test_another_machines_clock_may_be_wrong_as_long_as_the_heart_beats(skew, running, clock):
    watcher = Watcher(running.parent, clock)
    for step in range(5):
        beat(running, time.time() + skew + 2 * step)
        seen = watcher.look()
        clock.now += 2
    assert seen.runs[0].status == "running" and not seen.is_over
    clock.now += DEAD_AFTER_S
    assert statuses(watcher)[0] == "dead"


def test_the_heart_beats_while_the_work_is_done_and_no_longer(work_folder):
    with beating(work_folder):
        deadline = time.monotonic() + 60
        while not (work_folder / HEARTBEAT_FILE).exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not (work_folder / HEARTBEAT_FILE).exists()


def test_a_heart_that_cannot_write_ends_nothing(work_folder):
    with beating(work_folder / "nowhere"):
        pass


def watch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "laptime.watch", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def told(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


NOTE = 'echo "$LAPTIME_EVENT|$LAPTIME_DIR|$LAPTIME_MESSAGE" >> told'


def test_a_sweep_with_a_failed_run_is_shown_and_told(train, work_folder):
    typed = ["-m", *QUICK, "optimizer=sgd", "optimizer.lr=0.1,1e30", "hydra.sweep.dir=s"]
    assert train(*typed, f"sweep.notify='{NOTE}'").returncode == 1
    first, last = told(work_folder / "told")
    assert first.startswith(f"run-failed|{work_folder / 's'}|run 1 (optimizer.lr=1e+30): the loss became")
    assert last == f"sweep-failed|{work_folder / 's'}|1 of 2 runs completed"
    seen = watch("s", "--notify", NOTE.replace("told", "told2"))
    assert seen.returncode == 1
    assert "s: over" in seen.stdout and "1 completed, 1 failed" in seen.stdout
    assert "optimizer.lr=1e+30" in seen.stdout and "2/2" in seen.stdout and "the loss became" in seen.stdout
    assert [line.partition("|")[0] for line in told(work_folder / "told2")] == ["run-failed", "sweep-failed"]


def test_a_whole_sweep_ends_the_watch_with_0(train, work_folder):
    assert train("-m", *QUICK, "seed=1,2", "hydra.sweep.dir=s", f"sweep.notify='{NOTE}'").returncode == 0
    assert told(work_folder / "told") == [f"sweep-completed|{work_folder / 's'}|2 of 2 runs completed"]
    seen = watch("s")
    assert seen.returncode == 0 and "2 completed" in seen.stdout
    assert watch("s/0", "--once").returncode == 0


def test_a_killed_sweep_is_dead_and_the_rest_did_not_start(work_folder):
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        "-m",
        *QUICK,
        "seed=1,2,3",
        "training.epochs=200",
        "hydra.sweep.dir=s",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        while not (work_folder / "s/0/epochs.csv").exists():
            assert process.poll() is None
            time.sleep(0.05)
        live = watch("s", "--once")
        assert live.returncode == 0 and "1 running, 2 waiting" in live.stdout and "s: going on" in live.stdout
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    seen = watch("s")
    assert seen.returncode == 1
    # The first rank notes the launcher's death, if it still can.
    assert ("1 dead" in seen.stdout or "1 failed" in seen.stdout) and "2 not started" in seen.stdout


@pytest.mark.parametrize("folder", ["nowhere", ".", "latest"])
def test_what_is_no_sweep_is_refused(folder, work_folder, capsys, monkeypatch):
    monkeypatch.setattr("laptime.watch.__main__._WAIT_S", 0)
    assert main([folder]) == 2
    assert f"error: {folder}" in capsys.readouterr().err


def test_latest_waits_for_a_sweep_that_is_about_to_start(train, work_folder):
    """One that is over is not what is meant by whoever has just started another."""
    assert train("-m", *QUICK, "seed=1", "hydra.sweep.dir=multirun/before").returncode == 0
    watcher = subprocess.Popen(
        [sys.executable, "-m", "laptime.watch", "latest"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert "nothing is running: waiting" in watcher.stderr.readline()
    (work_folder / "multirun/next").mkdir()
    (work_folder / "multirun/next/multirun.yaml").touch()
    assert "multirun/next: over" in watcher.communicate(timeout=120)[0]


def test_a_line_tells_of_everything_that_happens_where_there_is_no_terminal(train, work_folder):
    assert train("-m", *QUICK, "optimizer.lr=1e-3,1e30", "optimizer=sgd", "hydra.sweep.dir=s").returncode == 1
    seen = watch("s")
    assert "] run 0 (optimizer.lr=0.001): completed\n" in seen.stdout
    assert "] run 1 (optimizer.lr=1e+30): the loss became" in seen.stdout
    assert seen.stdout.endswith("To finish it: python train.py sweep.resume=s\n")


def test_a_sweep_that_this_machine_has_ended_is_over_at_once(running):
    child = subprocess.Popen(
        [sys.executable, "-c", f"from laptime.run_dir import *; use(Path({str(running.parent)!r}))"]
    )
    assert child.wait() == 0
    beat(running, time.time() - DEAD_AFTER_S - 1)
    seen = Watcher(running.parent).look()
    assert seen.is_over and [run.status for run in seen.runs] == ["dead", "waiting", "waiting"]


def test_epochs_that_a_run_goes_on_from_count(train, work_folder):
    assert train(*QUICK, "hydra.run.dir=first").returncode == 0
    assert train(*QUICK, "training.epochs=5", "training.checkpoint=first", "hydra.run.dir=second").returncode == 0
    assert "5/5" in watch("second", "--once").stdout


def test_a_run_whose_record_is_damaged_is_shown(running, capsys):
    (running / "run.json").write_text("{")
    assert main([str(running.parent), "--once"]) == 1
    assert "can't be read" in " ".join(capsys.readouterr().out.split())


def test_a_command_that_fails_ends_nothing(train, work_folder):
    ended = train("-m", *QUICK, "seed=1", "hydra.sweep.dir=s", "sweep.notify='echo no >&2; exit 3'")
    assert ended.returncode == 0
    assert json.loads((work_folder / "s/0/run.json").read_text())["status"] == "completed"
    assert "sweep.notify: ended with code 3 (no)" in ended.stderr


def test_a_file_cannot_have_commands_run(train, work_folder):
    (work_folder / "conf/sweep").mkdir(parents=True)
    (work_folder / "conf/sweep/evil.yaml").write_text(
        "on_failure: continue\nresume: null\ndry_run: false\nnotify: touch owned\n"
    )
    ended = train("--config-dir", "conf", "-m", "sweep=evil", *QUICK, "seed=1,2")
    assert ended.returncode == 2 and "error: sweep.notify=touch owned: comes from a" in ended.stderr
    assert not (work_folder / "owned").exists() and not (work_folder / "multirun").exists()


def test_secrets_of_a_failed_run_are_told_to_nobody(train, work_folder):
    (work_folder / "leaky.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Linear):\n    def __init__(self, api_key):\n"
        "        raise RuntimeError('refused ' + api_key)\n"
    )
    net = ["model._target_=leaky.Net", "~model.hidden_sizes", "~model.dropout", "+model.api_key=hunter2secret"]
    ended = train("-m", *QUICK, *net, "seed=1", "hydra.sweep.dir=s", f"sweep.notify='{NOTE}'")
    assert ended.returncode != 0
    assert "hunter2secret" not in ended.stderr + ended.stdout
    assert "refused ***" in (work_folder / "told").read_text()


def test_a_sweep_that_is_ended_before_its_first_run_says_so(work_folder):
    command = [
        sys.executable, str(ROOT / "train.py"), "-m", *QUICK, "seed=range(1,40)", "training.epochs=300",
        "hydra.sweep.dir=s", f"sweep.notify='{NOTE}'",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not (work_folder / "s/multirun.yaml").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.terminate()
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "To finish it: sweep.resume=s" in out
    assert told(work_folder / "told") == [f"sweep-failed|{work_folder / 's'}|0 of 39 runs completed"]


@pytest.mark.parametrize("content", ["[" * 200_000, "{}", '{"runs": 3}', "\udcff"])
def test_a_damaged_plan_hides_no_run(content, running):
    (running.parent / "plan.json").write_text(content, errors="surrogateescape")
    (running / "epochs.csv").write_text("attempt,epoch,rank,is_warmup,epoch_time_s\n0,0,0,True,quick\n")
    assert main([str(running.parent), "--once"]) == 0


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("sweep.notify=echo a, b", "sweep.notify=echo a, b: is several values, to sweep over. A command with a comma"),
        ("sweep.notify='it\"s' now", "not understood. Write key=value1,value2"),
        ("sweep.notify=a && b; c(", "not understood. Write key=value1,value2"),
    ],
)
def test_a_command_without_quotes_of_its_own_is_told_about_them(typed, words, train):
    ended = train("-m", *QUICK, "seed=1,2", typed)
    assert ended.returncode == 2 and words in ended.stderr
    assert "takes quotes of its own: 'sweep.notify=" in " ".join(ended.stderr.split())
