"""Ranks that fail, die, get stuck or are interrupted: the run ends by itself and leaves no process behind."""

import os
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from tests.support.logged_values import csv_values, tensorboard_values
from tests.support.processes import DEADLINE_S, until
from tests.support.settings import TINY

from laptime.record.files import read_epochs, read_record

RUN_DIR = Path("run")
TWO_RANKS = [*TINY, "strategy.world_size=2"]
UNDISTURBED = [*TWO_RANKS, "training.epochs=3"]


@pytest.fixture
def two_ranks(start):
    """A running command with two ranks that have completed at least one epoch; none of them outlives the test."""
    processes: list[psutil.Process] = []

    def run(*arguments: str) -> tuple[Any, list[int], list[psutil.Process]]:
        process = start(*TWO_RANKS, "training.epochs=1000000", f"hydra.run.dir={RUN_DIR}", *arguments, new_session=True)
        until(lambda: len(read_epochs(RUN_DIR)) >= 2, process)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        processes.extend(family)
        return process, read_record(RUN_DIR)["strategy"]["rank_pids"], family

    yield run
    for process in processes:
        if process.is_running():
            process.kill()


def assert_ended(family: list[psutil.Process], status: str) -> dict:
    """Check that the command and its processes have ended and that the measurements are saved."""
    _, left = psutil.wait_procs(family, timeout=DEADLINE_S)
    assert not left, f"left behind: {left}"
    record = read_record(RUN_DIR)
    assert record["status"] == status
    rows = read_epochs(RUN_DIR)
    assert set(rows["rank"]) == {0, 1}
    assert rows.groupby("epoch").size().eq(2).all(), "half an epoch was recorded"
    return record


@pytest.mark.parametrize("victim", [0, 1])
def test_killed_rank_fails_the_run_which_names_it(victim, two_ranks):
    process, pids, family = two_ranks()
    os.kill(pids[victim], signal.SIGKILL)
    errors = process.communicate()[1]
    assert process.returncode == 1
    assert "Traceback" not in errors
    record = assert_ended(family, "failed")
    assert record["error"]["rank"] == victim
    assert "SIGKILL" in record["error"]["message"]
    assert f"rank {victim} was killed by SIGKILL" in errors


@pytest.mark.parametrize("comm_hook", ["none", "shared_memory"])
def test_other_ranks_notice_a_dead_rank_immediately(comm_hook, start):
    """The timeout is an hour, and the stopped launcher can't end them, so they notice it themselves."""
    process = start(
        *TWO_RANKS, "training.epochs=3", f"strategy.comm_hook={comm_hook}", "strategy.timeout_s=3600",
        "+callbacks.dies._target_=rank_checks.DieWhileLauncherIsStopped", f"hydra.run.dir={RUN_DIR}",
    )  # fmt: skip
    until(lambda: len(read_epochs(RUN_DIR)) >= 2, process)
    survivor = psutil.Process(read_record(RUN_DIR)["strategy"]["rank_pids"][0])
    until(lambda: not survivor.is_running(), process, what="the end of the other rank")
    assert psutil.Process(process.pid).status() == psutil.STATUS_STOPPED
    process.send_signal(signal.SIGCONT)
    errors = process.communicate()[1]
    assert process.returncode == 1
    assert "rank 1 was killed by SIGKILL" in errors


@pytest.mark.soak
@pytest.mark.parametrize("number", [0, 1])
def test_a_stopped_rank_does_not_outlive_a_killed_launcher(number, two_ranks):
    process, pids, family = two_ranks()
    os.kill(pids[number], signal.SIGSTOP)
    process.kill()
    _, left = psutil.wait_procs(family, timeout=DEADLINE_S)
    assert left == []


def test_ranks_end_with_a_killed_launcher_and_the_record_says_so(two_ranks):
    process, _, family = two_ranks()
    process.kill()
    record = assert_ended(family, "failed")
    assert "the process that launched the ranks has died" in record["error"]["message"]


@pytest.mark.parametrize(
    ("signum", "code", "to_all"),
    [
        (signal.SIGINT, 130, True),
        (signal.SIGTERM, 143, False),
        (signal.SIGUSR1, 138, False),
        (signal.SIGHUP, 129, True),
        pytest.param(signal.SIGINT, 130, False, marks=pytest.mark.soak),
        pytest.param(signal.SIGTERM, 143, True, marks=pytest.mark.soak),
        pytest.param(signal.SIGUSR1, 138, True, marks=pytest.mark.soak),
        pytest.param(signal.SIGHUP, 129, False, marks=pytest.mark.soak),
    ],
)
def test_signal_interrupts_the_run(signum, code, to_all, two_ranks):
    process, _, family = two_ranks()
    if to_all:
        os.killpg(process.pid, signum)
    else:
        process.send_signal(signum)
    errors = process.communicate()[1]
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    record = assert_ended(family, "interrupted")
    assert signal.Signals(signum).name in record["error"]["message"]


def test_stuck_rank_fails_the_run_after_the_timeout(two_ranks):
    process, pids, family = two_ranks("strategy.timeout_s=8")
    os.kill(pids[1], signal.SIGSTOP)
    errors = process.communicate()[1]
    assert process.returncode == 1
    record = assert_ended(family, "failed")
    assert record["error"]["rank"] == 1, record["error"]
    assert "did not respond within strategy.timeout_s=8" in record["error"]["message"]
    assert "Traceback" not in errors


@pytest.mark.soak
def test_run_fails_after_the_timeout_when_all_ranks_are_stuck(two_ranks):
    process, pids, family = two_ranks("strategy.timeout_s=8")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    assert process.wait() == 1
    assert "did not respond within strategy.timeout_s=8" in assert_ended(family, "failed")["error"]["message"]


@pytest.mark.soak
def test_data_workers_end_with_a_killed_rank(two_ranks):
    _, pids, family = two_ranks("dataset.pipeline=workers", "dataset.num_workers=1")
    # Persistent workers live through all epochs, so each rank has its training worker.
    workers = [worker for pid in pids for worker in psutil.Process(pid).children()]
    assert len(workers) >= 2
    os.kill(pids[1], signal.SIGKILL)
    assert_ended([*family, *workers], "failed")


@pytest.mark.parametrize("rank", [0, 1])
def test_exception_in_a_rank_is_recorded_with_its_traceback(rank, train, breaking):
    done = train(*breaking(rank, 1, "raise"), *TINY, "hydra.run.dir=run")
    assert done.returncode == 1
    assert f"rank {rank}: ValueError: broken on purpose" in done.stderr
    record = read_record(RUN_DIR)
    assert record["status"] == "failed"
    assert record["error"]["rank"] == rank
    assert "on_train_batch_end" in record["error"]["traceback"]
    assert list(read_epochs(RUN_DIR)["epoch"]) == [0, 0]
    assert not any(psutil.pid_exists(pid) for pid in record["strategy"]["rank_pids"])


@pytest.fixture
def restarted(train, breaking):
    """restarted(rank, epoch, *overrides): the run of which this rank is killed once in this epoch; record and stdout.

    The ranks may start again once.
    """

    def run(rank: int, epoch: int, *overrides: str) -> tuple[dict, str]:
        common = [*breaking(rank, epoch, "kill", once=True), *TINY, "strategy.max_restarts=1", "hydra.run.dir=run"]
        done = train(*common, *overrides)
        assert done.returncode == 0, done.stderr
        record = read_record(RUN_DIR)
        assert record["status"] == "completed"
        assert [attempt["status"] for attempt in record["attempts"]] == ["failed", "completed"]
        return record, done.stdout

    return run


def test_restarted_run_equals_the_uninterrupted_run_and_numbers_its_attempts(restarted, trained):
    record, _ = restarted(1, 1)
    assert "SIGKILL" in record["attempts"][0]["error"]["message"]
    rows = read_epochs(RUN_DIR)
    # The incomplete epoch 1 was not recorded. It was trained again, as a warm-up epoch.
    assert rows[["attempt", "epoch", "rank"]].to_numpy().tolist() == [
        [0, 0, 0], [0, 0, 1], [1, 1, 0], [1, 1, 1], [1, 2, 0], [1, 2, 1],
    ]  # fmt: skip
    assert list(rows["is_warmup"]) == [True, True, True, True, False, False]
    assert_figures_are_of_all_attempts(record, rows)
    columns = ["epoch", "rank", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr"]
    whole = read_epochs(trained(*UNDISTURBED))
    assert rows[columns].to_numpy().tolist() == whole[columns].to_numpy().tolist()
    assert record["result"]["test_loss"] == read_record(trained(*UNDISTURBED))["result"]["test_loss"]


def assert_figures_are_of_all_attempts(record: dict, rows: pd.DataFrame) -> None:
    slowest = rows.groupby("epoch")[["epoch_time_s", "is_warmup"]].max()
    assert record["timing"]["epoch_time_s"] == slowest.loc[~slowest["is_warmup"], "epoch_time_s"].median()
    first, second = record["attempts"]
    assert record["timing"]["total_train_s"] == first["total_train_s"] + second["total_train_s"]
    assert record["timing"]["total_train_s"] > slowest["epoch_time_s"].sum()
    assert record["timing"]["startup_s"] == first["startup_s"]
    assert second["startup_s"] > 0


def test_restart_keeps_the_epochs_of_earlier_attempts(restarted):
    record, shown = restarted(0, 2, "logger=[csv,tensorboard]")
    rows = read_epochs(RUN_DIR)
    for values in (csv_values(RUN_DIR), tensorboard_values(RUN_DIR)):
        assert sorted(step for step, _ in values["train/loss"]) == [0, 1, 2]
    assert rows.groupby("epoch")["attempt"].first().to_list() == [0, 0, 1]
    assert rows.groupby("epoch")["is_warmup"].first().to_list() == [True, False, True]
    assert_figures_are_of_all_attempts(record, rows)
    shown = " ".join(shown.split())
    assert "1 (rank 0 was killed by SIGKILL" in shown and "3, of which 2 warm-up" in shown


def test_restart_before_the_first_checkpoint_starts_from_the_beginning(restarted):
    record, _ = restarted(1, -1)
    assert record["attempts"][0]["total_train_s"] is record["attempts"][0]["startup_s"] is None
    assert record["timing"]["startup_s"] == record["attempts"][1]["startup_s"]
    assert list(read_epochs(RUN_DIR)["epoch"]) == [0, 0, 1, 1, 2, 2]


def test_death_after_the_last_epoch_loses_no_measurement(train, breaking, trained):
    overrides = [*breaking(1, 3, "kill", once=True), *TINY, "measure.breakdown=true", "strategy.max_restarts=1"]
    assert train(*overrides, "hydra.run.dir=run").returncode == 0
    record = read_record(RUN_DIR)
    assert [attempt["status"] for attempt in record["attempts"]] == ["failed", "completed"]
    rows = read_epochs(RUN_DIR)
    assert rows[["attempt", "epoch"]].drop_duplicates().to_numpy().tolist() == [[0, 0], [0, 1], [0, 2]]
    slowest = rows[~rows["is_warmup"]].groupby("epoch")["epoch_time_s"].max()
    assert record["timing"]["epoch_time_s"] == slowest.median()
    assert record["communication"]["step_s"] is not None
    assert record["result"] == read_record(trained(*UNDISTURBED))["result"]


@pytest.mark.parametrize("overrides", [[], pytest.param(["dataset.pipeline=mapped"], marks=pytest.mark.soak)])
def test_one_rank_without_ddp_is_restarted(overrides, train, breaking):
    done = train(
        *breaking(0, 1, "kill", once=True), *TINY, *overrides, "strategy.world_size=1", "strategy.max_restarts=1",
        "hydra.run.dir=run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = read_record(RUN_DIR)
    assert [attempt["status"] for attempt in record["attempts"]] == ["failed", "completed"]
    assert sorted(set(read_epochs(RUN_DIR)["epoch"])) == [0, 1, 2]
    assert len(record["strategy"]["rank_pids"]) == 1


def test_restarts_are_limited(train, breaking):
    done = train(*breaking(0, 0, "kill"), *TINY, "strategy.max_restarts=2", "hydra.run.dir=run")
    assert done.returncode == 1 and "rank 0 was killed by SIGKILL" in done.stderr
    assert [attempt["status"] for attempt in read_record(RUN_DIR)["attempts"]] == ["failed"] * 3
