"""Ranks that fail, die, get stuck or are told to stop: the run ends by itself and leaves nobody behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

import laptime
from laptime.errors import RankFailed
from laptime.record import read_epochs, read_record

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
RUN_DIR = Path("run")
TWO_RANKS = [
    "dataset.limit=2000", "training.batch_size=32", "logger=none", "device=cpu", "strategy.world_size=2",
    "training.epochs=100000",
]  # fmt: skip


@pytest.fixture
def two_ranks(work_folder):
    """A running command with two ranks that have completed at least one epoch; none of them outlives the test."""
    processes: list[psutil.Process] = []

    def start(*arguments: str) -> tuple[subprocess.Popen[str], list[int]]:
        process = subprocess.Popen(
            [sys.executable, str(TRAIN), *TWO_RANKS, f"hydra.run.dir={RUN_DIR}", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Under nohup, which the tests may be run under, the command ignores it, as it should.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
        while len(read_epochs(RUN_DIR)) < 2:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        processes.extend([psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)])
        return process, read_record(RUN_DIR)["strategy"]["rank_pids"]

    yield start
    for process in processes:
        if process.is_running():
            process.kill()


def assert_ended(process: subprocess.Popen[str], family: list[psutil.Process], status: str) -> dict:
    """The command has ended, nobody of it is left, and what was measured is kept."""
    _, left = psutil.wait_procs(family, timeout=60)
    assert not left, f"left behind: {left}"
    record = read_record(RUN_DIR)
    assert record["status"] == status
    rows = read_epochs(RUN_DIR)
    assert set(rows["rank"]) == {0, 1}
    assert rows.groupby("epoch").size().eq(2).all(), "half an epoch was recorded"
    return record


def family_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    own = psutil.Process(process.pid)
    return [own, *own.children(recursive=True)]


@pytest.mark.parametrize("victim", [0, 1])
def test_killed_rank_fails_the_run_which_names_it(victim, two_ranks):
    process, pids = two_ranks()
    family = family_of(process)
    os.kill(pids[victim], signal.SIGKILL)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "Traceback" not in errors
    record = assert_ended(process, family, "failed")
    assert record["error"]["rank"] == victim
    assert "SIGKILL" in record["error"]["message"]
    assert f"rank {victim} was killed by SIGKILL" in errors


@pytest.mark.parametrize("number", [0, 1])
def test_a_stopped_rank_does_not_outlive_a_killed_launcher(number, two_ranks):
    process, _ = two_ranks()
    family = family_of(process)
    pids = read_record(Path("run"))["strategy"]["rank_pids"]
    os.kill(pids[number], signal.SIGSTOP)
    process.kill()
    process.communicate()
    _, left = psutil.wait_procs(family, timeout=60)
    assert left == []


def test_killed_launcher_takes_its_ranks_along_and_the_record_says_so(two_ranks):
    process, _ = two_ranks()
    family = family_of(process)
    process.kill()
    process.communicate()
    record = assert_ended(process, family, "failed")
    assert "the process that launched the ranks is gone" in record["error"]["message"]


@pytest.mark.parametrize("to_all", [True, False], ids=["group", "launcher alone"])
@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138), (signal.SIGHUP, 129)]
)
def test_signal_interrupts_the_run(to_all, signum, code, two_ranks):
    process, _ = two_ranks()
    family = family_of(process)
    if to_all:
        os.killpg(process.pid, signum)
    else:
        process.send_signal(signum)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    record = assert_ended(process, family, "interrupted")
    assert signal.Signals(signum).name in record["error"]["message"]


def test_stuck_rank_is_given_up_after_the_timeout(two_ranks):
    process, pids = two_ranks("strategy.timeout_s=15")
    family = family_of(process)
    os.kill(pids[1], signal.SIGSTOP)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    record = assert_ended(process, family, "failed")
    assert record["error"]["rank"] == 1, record["error"]
    assert "did not answer" in record["error"]["message"]
    assert "Traceback" not in errors


def test_ranks_that_are_all_stuck_are_given_up_too(two_ranks):
    process, pids = two_ranks("strategy.timeout_s=15")
    family = family_of(process)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    process.communicate(timeout=120)
    assert process.returncode == 1
    assert "did not answer" in assert_ended(process, family, "failed")["error"]["message"]


def test_data_workers_end_with_a_killed_rank(two_ranks):
    process, pids = two_ranks("dataset.pipeline=workers", "dataset.num_workers=1")
    family = family_of(process)
    workers = [worker for pid in pids for worker in psutil.Process(pid).children()]
    assert len(workers) >= 2
    os.kill(pids[1], signal.SIGKILL)
    process.communicate(timeout=60)
    assert_ended(process, [*family, *workers], "failed")


@pytest.mark.parametrize("rank", [0, 1])
def test_exception_in_a_rank_is_recorded_with_its_traceback(rank, breaking):
    with pytest.raises(RankFailed, match=f"rank {rank}: ValueError: broken on purpose"):
        laptime.run([*breaking(rank, 1, "raise"), "hydra.run.dir=run"])
    record = read_record(RUN_DIR)
    assert record["status"] == "failed"
    assert record["error"]["rank"] == rank
    assert "on_train_batch_end" in record["error"]["traceback"]
    assert list(read_epochs(RUN_DIR)["epoch"]) == [0, 0]
    assert not any(psutil.pid_exists(pid) for pid in record["strategy"]["rank_pids"])


def test_restarted_run_equals_the_undisturbed_one_and_keeps_attempts_apart(breaking):
    record = laptime.run([*breaking(1, 1, "kill", once=True), "strategy.max_restarts=1", "hydra.run.dir=run"])
    assert record["status"] == "completed"
    assert [attempt["status"] for attempt in record["attempts"]] == ["failed", "completed"]
    assert "SIGKILL" in record["attempts"][0]["error"]["message"]
    rows = read_epochs(RUN_DIR)
    # The broken epoch 1 was not counted; it was trained again, as the cold start that it is.
    assert rows[["attempt", "epoch", "rank"]].to_numpy().tolist() == [
        [0, 0, 0], [0, 0, 1], [1, 1, 0], [1, 1, 1], [1, 2, 0], [1, 2, 1],
    ]  # fmt: skip
    assert list(rows["is_warmup"]) == [True, True, True, True, False, False]
    assert_figures_are_of_all_attempts(record, rows)
    laptime.run([*breaking(1, 1, "kill", once=True), "hydra.run.dir=whole"])
    columns = ["epoch", "rank", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"]
    whole = read_epochs(Path("whole"))
    assert rows[columns].to_numpy().tolist() == whole[columns].to_numpy().tolist()
    assert record["result"]["test_loss"] == read_record(Path("whole"))["result"]["test_loss"]


def assert_figures_are_of_all_attempts(record: dict, rows: pd.DataFrame) -> None:
    slowest = rows.groupby("epoch")[["epoch_time_s", "is_warmup"]].max()
    assert record["timing"]["epoch_time_s"] == slowest.loc[~slowest["is_warmup"], "epoch_time_s"].median()
    first, second = record["attempts"]
    assert record["timing"]["total_train_s"] == first["total_train_s"] + second["total_train_s"]
    assert record["timing"]["total_train_s"] > slowest["epoch_time_s"].sum()
    assert record["timing"]["startup_s"] == first["startup_s"]
    assert second["startup_s"] > 0


def test_restart_keeps_the_epochs_that_earlier_attempts_have_counted(breaking, capsys):
    record = laptime.run([*breaking(0, 2, "kill", once=True), "strategy.max_restarts=1", "hydra.run.dir=run"])
    rows = read_epochs(RUN_DIR)
    assert rows.groupby("epoch")["attempt"].first().to_list() == [0, 0, 1]
    assert rows.groupby("epoch")["is_warmup"].first().to_list() == [True, False, True]
    assert_figures_are_of_all_attempts(record, rows)
    shown = capsys.readouterr().out
    assert "1, after: rank 0 was killed by SIGKILL" in shown and "3, of which 2 warm-up" in shown


def test_restart_before_the_first_checkpoint_starts_from_the_beginning(breaking):
    record = laptime.run([*breaking(1, -1, "kill", once=True), "strategy.max_restarts=1", "hydra.run.dir=run"])
    assert [attempt["status"] for attempt in record["attempts"]] == ["failed", "completed"]
    assert record["attempts"][0]["total_train_s"] is record["attempts"][0]["startup_s"] is None
    assert record["timing"]["startup_s"] == record["attempts"][1]["startup_s"]
    assert list(read_epochs(RUN_DIR)["epoch"]) == [0, 0, 1, 1, 2, 2]


def test_death_after_the_last_epoch_loses_no_measurement(breaking):
    record = laptime.run([*breaking(1, 3, "kill", once=True), "strategy.max_restarts=1", "hydra.run.dir=run"])
    assert [attempt["status"] for attempt in record["attempts"]] == ["failed", "completed"]
    rows = read_epochs(RUN_DIR)
    assert rows[["attempt", "epoch"]].drop_duplicates().to_numpy().tolist() == [[0, 0], [0, 1], [0, 2]]
    slowest = rows[~rows["is_warmup"]].groupby("epoch")["epoch_time_s"].max()
    assert record["timing"]["epoch_time_s"] == slowest.median()
    assert record["communication"]["step_s"] is not None
    laptime.run([*breaking(1, 3, "kill", once=True), "hydra.run.dir=whole"])
    assert record["result"] == read_record(Path("whole"))["result"]


def test_restarts_are_limited(breaking):
    with pytest.raises(RankFailed, match="rank 0 was killed by SIGKILL"):
        laptime.run([*breaking(0, 0, "kill"), "strategy.max_restarts=2", "hydra.run.dir=run"])
    assert [attempt["status"] for attempt in read_record(RUN_DIR)["attempts"]] == ["failed"] * 3
