"""`laptime watch`: real sweeps, complete, failed and killed, and made-up records for heartbeats and clocks."""

import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.support import processes
from tests.support.processes import until
from tests.support.records import EPOCH_ROW, append_epochs, end_attempt, new_record, start_attempt, write_record
from tests.support.settings import NO_REPORT, TINY
from tests.support.terminal import Terminal

from laptime.record.files import read_record, timestamp
from laptime.record.heartbeat import HEARTBEAT_FILE, keep_heartbeat
from laptime.record.plan import write_plan

TINY_SWEEP = ("-m", *TINY, NO_REPORT, "training.epochs=2")
SCRIPTS = Path(__file__).parents[1] / "user_classes"
NOTE = 'echo "$LAPTIME_EVENT|$LAPTIME_DIR|$LAPTIME_MESSAGE" >> notified'


def notifications(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


# Real sweeps.


@dataclass
class Done:
    """A sweep that has ended: the folder where it ran, and its stderr."""

    folder: Path
    stderr: str


@pytest.fixture(scope="module")
def one_failed(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """s/: two runs; the second failed. `notified` contains the notifications."""
    folder = tmp_path_factory.mktemp("failed")
    overrides = [*TINY_SWEEP, "optimizer=sgd", "optimizer.lr=0.1,1e30", "hydra.sweep.dir=s", f"sweep.notify='{NOTE}'"]
    done = processes.run(*overrides, cwd=folder)
    assert done.returncode == 1, done.stderr
    return Done(folder, done.stderr)


def test_a_failed_run_is_shown_and_notified(one_failed, watch, work_folder):
    folder = one_failed.folder
    first, last = notifications(folder / "notified")
    assert first.startswith(f"run-failed|{folder / 's'}|run 1 (optimizer.lr=1e+30): the loss became")
    assert last == f"sweep-failed|{folder / 's'}|1 of 2 runs completed"
    seen = watch(str(folder / "s"), "--notify", NOTE)
    assert seen.returncode == 1
    assert "s: ended" in seen.stdout and "1 completed, 1 failed" in seen.stdout
    assert "optimizer.lr=1e+30" in seen.stdout and "2/2" in seen.stdout and "the loss became" in seen.stdout
    assert [line.partition("|")[0] for line in notifications(work_folder / "notified")] == [
        "run-failed",
        "sweep-failed",
    ]


def test_without_a_terminal_each_change_is_a_line(one_failed):
    seen = processes.run("s", module="laptime.watch", cwd=one_failed.folder)
    assert seen.returncode == 1, seen.stderr
    assert "] run 0 (optimizer.lr=0.1): completed\n" in seen.stdout
    assert "] run 1 (optimizer.lr=1e+30): the loss became" in seen.stdout
    assert re.search(r"^Resume with: python\S* -m laptime sweep\.resume=s\n\Z", seen.stdout, re.MULTILINE)


def test_a_complete_sweep_exits_with_0(train, watch, work_folder):
    assert train(*TINY_SWEEP, "seed=1,2", "hydra.sweep.dir=s", f"sweep.notify='{NOTE}'").returncode == 0
    assert notifications(work_folder / "notified") == [f"sweep-completed|{work_folder / 's'}|2 of 2 runs completed"]
    seen = watch("s")
    assert seen.returncode == 0 and "2 completed" in seen.stdout
    assert watch("s/0", "--once").returncode == 0


@pytest.mark.soak
def test_a_killed_sweep_has_a_dead_run_and_runs_that_did_not_start(
    start, watch, dies_quickly, monkeypatch, work_folder
):
    pauses = "+callbacks.pause={_target_:pauses.PauseOnce,epoch:1}"
    sweep = start(*TINY_SWEEP, "seed=1,2,3", pauses, "hydra.sweep.dir=s")
    until((work_folder / "paused").exists, sweep)
    with monkeypatch.context() as patched:
        patched.setattr("laptime.watch.status.DEAD_AFTER_S", 1000.0)
        live = watch("s", "--once")
    assert live.returncode == 0 and "1 running, 2 waiting" in live.stdout and "s: running" in live.stdout
    sweep.kill()
    sweep.wait()
    seen = watch("s")
    assert seen.returncode == 1
    # The first rank may record the launcher's death before it ends.
    assert ("1 dead" in seen.stdout or "1 failed" in seen.stdout) and "2 not started" in seen.stdout


def test_a_sweep_that_is_ended_between_two_runs_says_so(train, work_folder):
    """The command that is notified of the first run's failure ends the sweep before the second run."""
    note = f"{NOTE}; [ $LAPTIME_EVENT = sweep-failed ] || kill $PPID"
    ended = train(*TINY_SWEEP, "optimizer=sgd", "optimizer.lr=1e30,0.1", "hydra.sweep.dir=s", f"sweep.notify='{note}'")
    assert ended.returncode == 143, ended.stderr
    assert re.search("Resume with: .* sweep.resume=s$", ended.stdout, re.MULTILINE)
    assert "1 of 2 runs of the sweep were not started" in ended.stderr
    assert [line.partition("|")[0] for line in notifications(work_folder / "notified")] == [
        "run-failed",
        "sweep-failed",
    ]
    assert notifications(work_folder / "notified")[1] == f"sweep-failed|{work_folder / 's'}|0 of 2 runs completed"


def test_a_sweep_that_is_ended_before_its_first_run_says_so(train, work_folder):
    early = f"+hydra.callbacks.early={{_target_:signal_at.SignalBeforeTheFirstRun,signum:{int(signal.SIGTERM)}}}"
    ended = train(*TINY_SWEEP, "seed=1,2,3", early, "hydra.sweep.dir=s", f"sweep.notify='{NOTE}'")
    assert ended.returncode == 143, ended.stderr
    assert re.search("Resume with: .* sweep.resume=s$", ended.stdout, re.MULTILINE)
    assert notifications(work_folder / "notified") == [f"sweep-failed|{work_folder / 's'}|0 of 3 runs completed"]


def test_epochs_of_the_resumed_checkpoint_count(trained, train, watch, work_folder):
    first = trained(*TINY, "training.epochs=2")
    overrides = ["training.epochs=5", f"training.checkpoint={first}", "hydra.run.dir=second"]
    assert train(*TINY, *overrides).returncode == 0
    assert "5/5" in watch("second", "--once").stdout


@pytest.mark.soak
def test_a_failing_notify_command_does_not_end_the_sweep(train, work_folder):
    ended = train(*TINY_SWEEP, "seed=1", "hydra.sweep.dir=s", "sweep.notify='echo no >&2; exit 3'")
    assert ended.returncode == 0
    assert read_record(work_folder / "s/0")["status"] == "completed"
    assert "sweep.notify: exited with code 3 (no)" in ended.stderr


def test_notifications_contain_no_secrets(train, work_folder):
    net = ["model._target_=nets_with_secrets.Refusing", "~model.hidden_sizes", "~model.dropout"]
    without_model = [override for override in TINY_SWEEP if not override.startswith("model.")]
    overrides = ["+model.api_key=hunter2secret", "seed=1", "hydra.sweep.dir=s", f"sweep.notify='{NOTE}'"]
    ended = train(*without_model, *net, *overrides)
    assert ended.returncode != 0
    assert "hunter2secret" not in ended.stderr + ended.stdout
    assert "refused ***" in (work_folder / "notified").read_text()


# Arguments.


@pytest.mark.unit
@pytest.mark.parametrize("folder", ["nowhere", ".", "latest"])
def test_a_folder_without_a_sweep_is_refused(folder, watch, work_folder, monkeypatch):
    monkeypatch.setattr("laptime.watch.__main__._WAIT_S", 0)
    refused = watch(folder)
    assert refused.returncode == 2 and f"error: {folder}" in refused.stderr


@pytest.mark.unit
@pytest.mark.parametrize("seconds", ["0.05", "3601"])
def test_an_interval_that_is_too_short_or_too_long_is_refused(seconds, watch, running):
    refused = watch(str(running.parent), "--interval", seconds)
    assert refused.returncode == 2 and "must be between 0.1 and 3600 seconds" in refused.stderr


@pytest.mark.unit
def test_latest_waits_for_a_sweep_that_is_about_to_start(watch, dies_quickly, monkeypatch, work_folder):
    """`latest` skips a sweep that has ended if another one starts soon."""

    def another_starts(seconds: float) -> None:
        (work_folder / "multirun/next").mkdir(exist_ok=True)
        (work_folder / "multirun/next/multirun.yaml").touch()
        write_plan(work_folder / "multirun/next", {}, starts=True)

    (work_folder / "multirun/before/0").mkdir(parents=True)
    (work_folder / "multirun/before/multirun.yaml").touch()
    record = new_record()
    record |= {"config": {"training": {"epochs": 5}}, "run_label": "seed=1"}
    start_attempt(record, 0)
    end_attempt(record, "completed", None)
    write_record(work_folder / "multirun/before/0", record)
    fake = SimpleNamespace(sleep=another_starts, monotonic=time.monotonic)
    monkeypatch.setattr("laptime.watch.__main__.time", fake)
    monkeypatch.setattr("laptime.watch.__main__._WAIT_S", 240)
    seen = watch("latest")
    assert "nothing is running: waiting" in seen.stderr
    assert "multirun/next: ended" in seen.stdout and "before" not in seen.stdout


@pytest.mark.unit
def test_the_interval_is_the_time_between_two_updates(watch, running, monkeypatch):
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            shutil.rmtree(running.parent / "0")
            write_plan(running.parent, {})
            monkeypatch.setattr("laptime.watch.status.DEAD_AFTER_S", 0.0)

    (running / HEARTBEAT_FILE).touch()
    monkeypatch.setattr("laptime.watch.__main__.time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    watch(str(running.parent), "--interval", "7")
    assert waited == [7.0, 7.0, 7.0]


@pytest.mark.unit
def test_a_run_whose_record_is_damaged_is_shown(running, watch):
    (running / "run.json").write_text("{")
    seen = watch(str(running.parent), "--once")
    assert seen.returncode == 1 and "can't be read" in " ".join(seen.stdout.split())


@pytest.mark.unit
@pytest.mark.parametrize("content", ["[" * 200_000, "{}", '{"runs": 3}', "\udcff"])
def test_runs_are_shown_despite_a_damaged_plan(content, running, watch):
    (running.parent / "plan.json").write_text(content, errors="surrogateescape")
    (running / "epochs.csv").write_text("attempt,epoch,rank,is_warmup,epoch_time_s\n0,0,0,True,quick\n")
    seen = watch(str(running.parent), "--once")
    assert seen.returncode == 0 and "seed=1" in seen.stdout


def test_a_configuration_file_cannot_set_a_notify_command(train, work_folder):
    (work_folder / "conf/sweep").mkdir(parents=True)
    (work_folder / "conf/sweep/evil.yaml").write_text(
        "on_failure: continue\nresume: null\ndry_run: false\nnotify: touch owned\n"
    )
    ended = train("--config-dir", "conf", *TINY_SWEEP, "sweep=evil", "seed=1,2")
    assert (
        ended.returncode == 2 and "error: sweep.notify=touch owned: can only be set on the command line" in ended.stderr
    )
    assert not (work_folder / "owned").exists() and not (work_folder / "multirun").exists()


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("sweep.notify=echo a, b", "has several values. If the command contains a comma"),
        ("sweep.notify='it\"s' now", "not understood"),
        ("sweep.notify=a && b; c(", "not understood"),
    ],
)
def test_a_notify_command_without_inner_quotes_is_refused(override, reason, train):
    ended = train(*TINY_SWEEP, "seed=1,2", override)
    assert ended.returncode == 2 and f"error: {override}: {reason}" in ended.stderr
    assert "'sweep.notify=\"" in ended.stderr.replace("\n", " ")  # how to quote it


# On a terminal.


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    with Terminal() as opened:
        yield opened


def end(run: Path, seconds: float) -> None:
    """Record that a run is completed and took this long."""
    record = read_record(run)
    end_attempt(record, "completed", None)
    now = time.time()
    record["ended_at"], record["attempts"][-1]["started_at"] = timestamp(now), timestamp(now - seconds)
    write_record(run, record)


@pytest.mark.skipif(sys.platform == "win32", reason="has no pseudo-terminals")
def test_a_terminal_shows_epoch_times_the_log_and_the_remaining_time(running, start, terminal):
    """Run 0 took 10 hours, run 1 has trained for 4, run 2 waits: 6 + 10 hours are left."""
    sweep, hour = running.parent, 3600.0
    for number in ("1", "2"):
        shutil.copytree(running, sweep / number)
    (sweep / "2/run.json").rename(sweep / "not yet")
    end(running, 10 * hour)
    append_epochs(running, [EPOCH_ROW | {"epoch": epoch, "epoch_time_s": 7.25} for epoch in range(5)])
    record = read_record(sweep / "1")
    record["attempts"][-1]["started_at"] = timestamp(time.time() - 4 * hour)
    write_record(sweep / "1", record)
    times = (8.5, 9.125, 99.0)
    append_epochs(sweep / "1", [EPOCH_ROW | {"epoch": at, "epoch_time_s": epoch_s} for at, epoch_s in enumerate(times)])
    (sweep / "1/train.log").write_text(
        "[2026-01-02 12:00:00,100][rank 0][INFO][laptime] epoch 1\n"
        "[2026-01-02 12:34:56,789][rank 0][INFO][laptime] epoch 2 is the last line\n"
    )
    with keep_heartbeat(sweep / "1"):
        watched = start(
            str(sweep), "--interval", "0.1", module="laptime.watch", stdout=terminal.command_fd,
            environment={"TERM": "xterm", "COLUMNS": "120"},
        )  # fmt: skip
        until(lambda: "about 16.0 h left" in terminal.text, watched)
    shown = terminal.text
    assert ": running" in shown and "1 completed, 1 running, 1 waiting" in " ".join(shown.split())
    rows = [line.replace("│", " ").split() for line in shown.splitlines() if "seed=" in line][:3]
    assert rows[0] == ["0", "seed=1", "completed", "5/5", "7.250", "s", "10.0", "h"]
    assert rows[1] == ["1", "seed=2", "running", "3/5", "9.125", "s", "4.0", "h"]
    assert rows[2] == ["2", "seed=3", "waiting"]
    assert "run 1: 12:34:56 epoch 2 is the last line" in shown

    for number in ("1", "2"):
        if number == "2":
            (sweep / "not yet").rename(sweep / "2/run.json")
        end(sweep / number, 10 * hour)
    assert watched.wait() == 0
    until(lambda: "3 completed" in terminal.text)
    assert "over" in terminal.text
