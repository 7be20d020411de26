"""Real ranks in separate processes: the training is the same at every world size. Also sweeps with several ranks."""

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
from tests.support import processes
from tests.support.processes import DEADLINE_S, until
from tests.support.settings import NO_REPORT, QUICK, TINY

import laptime
from laptime.machine.device import usable_cores
from laptime.record.files import read_epochs, read_record
from laptime.runner import fresh_processes

TWO_EPOCHS = [*TINY, "training.epochs=2"]
TWO_RANKS = [*TWO_EPOCHS, "strategy.world_size=2"]
NO_DROPOUT = "model.dropout=0"
ENDLESS = [*TINY, "training.epochs=1000000"]
SCRIPTS = Path(processes.__file__).with_name("scripts")


def family_of(process) -> list[psutil.Process]:
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


@pytest.mark.parametrize("world_size", [2, 3])
def test_each_rank_is_a_separate_process(world_size, start):
    process = start(*TWO_EPOCHS, f"strategy.world_size={world_size}", "hydra.run.dir=run")
    errors = process.communicate()[1]
    assert process.returncode == 0, errors
    record = read_record(Path("run"))
    strategy = record["strategy"]
    assert strategy["world_size"] == world_size
    assert strategy["backend"] == "gloo"
    assert len({*strategy["rank_pids"], process.pid}) == world_size + 1
    assert not any(psutil.pid_exists(pid) for pid in strategy["rank_pids"])
    assert list(read_epochs(Path("run"))["rank"]) == [*range(world_size)] * 2
    assert record["batch"]["global_batch_size"] == 32 * world_size


def test_epoch_time_is_that_of_the_slowest_rank_and_samples_are_summed(trained):
    run_dir = trained(*TWO_RANKS)
    record = read_record(run_dir)
    counted = read_epochs(run_dir).query("not is_warmup")
    assert record["timing"]["epoch_time_s"] == counted["epoch_time_s"].max()
    assert counted["num_samples"].sum() == 240
    assert record["timing"]["samples_per_s"] == pytest.approx(240 / counted["epoch_time_s"].max())


def test_world_sizes_follow_the_same_loss_curve_with_a_global_batch(trained):
    # Every step has the same samples; adding gradients in another order changes float32's last digits.
    curves = []
    for world_size in (1, 2, 4):
        run_dir = trained(*TWO_EPOCHS, "training.batch_scope=global", NO_DROPOUT, f"strategy.world_size={world_size}")
        losses = read_epochs(run_dir).groupby("epoch")[["train_loss", "val_loss"]].first()
        curves.append(losses.to_numpy().ravel().tolist())
        assert read_record(run_dir)["batch"]["global_batch_size"] == 32
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)
    assert curves[2] == pytest.approx(curves[0], rel=1e-3)


def test_one_rank_with_ddp_trains_in_its_own_process_over_gloo(start):
    records = []
    for name, wrap in (("plain", "false"), ("wrapped", "true")):
        process = start(*TWO_EPOCHS, f"strategy.wrap_single_rank={wrap}", NO_DROPOUT, f"hydra.run.dir={name}")
        assert process.wait() == 0
        records.append(read_record(Path(name)))
        assert (records[-1]["strategy"]["rank_pids"] == [process.pid]) == (name == "plain")
    plain, wrapped = records
    assert plain["strategy"]["backend"] is None and wrapped["strategy"]["backend"] == "gloo"
    assert wrapped["result"]["train_loss"] == pytest.approx(plain["result"]["train_loss"], rel=1e-4)


def test_every_sample_is_evaluated_once_at_every_world_size(trained):
    # 62 validation and 61 test samples do not divide by 3. Without training the results must be equal.
    untrained = [*TINY, "training.epochs=1", "optimizer.lr=1e-30", "optimizer.weight_decay=0"]
    odd = ["dataset.num_train=310", "dataset.num_test=61"]
    one, three = (
        read_record(trained(*untrained, *odd, f"strategy.world_size={world_size}"))["result"] for world_size in (1, 3)
    )
    for key in ("val_accuracy", "test_accuracy"):
        assert one[key] == three[key]
    for key in ("val_loss", "test_loss"):
        assert one[key] == pytest.approx(three[key], rel=1e-6)


def test_all_ranks_evaluate_with_the_same_batch_norm_statistics(train, work_folder):
    done = train(*TWO_RANKS, "model._target_=rank_checks.SameBatchNormStatistics")
    assert done.returncode == 0, done.stderr
    assert len(list(work_folder.glob("compared by rank *"))) == 2


@pytest.mark.parametrize(
    "hook", [pytest.param("fp16", marks=pytest.mark.soak), "bf16", pytest.param("powersgd", marks=pytest.mark.soak)]
)
def test_compressed_gradients_train(hook, trained):
    """On MNIST they reach the accuracy, and the losses differ from those with uncompressed gradients."""
    overrides = [*QUICK, "dataset.limit=2000", "training.batch_size=32", "training.epochs=2", "strategy.world_size=2"]
    whole, compressed = (read_record(trained(*overrides, f"strategy.comm_hook={name}")) for name in ("none", hook))
    assert compressed["result"]["val_accuracy"] > 0.7
    assert compressed["result"]["train_loss"] != whole["result"]["train_loss"]


def test_accumulation_over_ranks_gives_the_gradient_of_the_whole_batch(trained):
    whole, parts = (
        read_record(trained(*TWO_RANKS, NO_DROPOUT, f"training.num_microbatches={parts}")) for parts in (1, 4)
    )
    assert parts["result"]["train_loss"] == pytest.approx(whole["result"]["train_loss"], rel=1e-4)


def test_time_limit_stops_all_ranks_at_the_same_step(train, work_folder):
    """One rank's clock jumps ahead during an epoch: both ranks stop, and that epoch is not recorded."""
    overrides = [*TWO_RANKS, "training.epochs=3", "training.batch_size=8", "training.time_limit_s=3600"]
    done = train(*overrides, "+callbacks.ahead._target_=rank_checks.OneClockRunsAhead", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    record = read_record(Path("run"))
    assert record["result"]["stop_reason"] == "time_limit"
    assert record["result"]["test_accuracy"] is not None
    assert read_epochs(Path("run"))[["epoch", "rank"]].to_numpy().tolist() == [[0, 0], [0, 1]]
    notes = {path.name: path.read_text() for path in work_folder.glob("last step of rank *")}
    assert notes == dict.fromkeys(["last step of rank 0", "last step of rank 1"], "epoch 1 step 5")


def test_resumed_ranks_equal_uninterrupted_ranks(trained):
    columns = ["epoch", "rank", "train_loss", "val_loss"]
    whole = trained(*TINY, "strategy.world_size=2", "training.epochs=3")
    first = trained(*TWO_RANKS)
    second = trained(*TINY, "strategy.world_size=2", "training.epochs=3", f"training.checkpoint={first}")
    both = pd.concat([read_epochs(first), read_epochs(second)])[columns]
    assert both.to_numpy().tolist() == read_epochs(whole)[columns].to_numpy().tolist()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("strategy.world_size=-1", ["strategy.world_size=-1", "at least 1"]),
        ("strategy.world_size=many", ["strategy.world_size=many", "auto"]),
        ("strategy.world_size=3 training.batch_scope=global", ["training.batch_size=64", "multiple"]),
        ("strategy.world_size=128 training.batch_scope=global", ["training.batch_size=64", "multiple"]),
        ("device=mps strategy.world_size=2", ["device=mps", "gloo", "device=cpu"]),
        ("strategy.backend=nccl strategy.world_size=2", ["strategy.backend=nccl", "CUDA"]),
        ("strategy.master_port=70000", ["strategy.master_port=70000"]),
        ("strategy.master_addr=192.0.2.1 strategy.world_size=2", ["strategy.master_addr=192.0.2.1"]),
        ("strategy=single strategy.world_size=2", ["strategy=single", "strategy=ddp"]),
        ("strategy.master_addr='' strategy.world_size=2", ["strategy.master_addr=", "127.0.0.1"]),
        ("strategy.master_addr=0.0.0.0 strategy.world_size=2", ["0.0.0.0", "loopback"]),
        ("strategy.master_addr=no.such.host.invalid strategy.world_size=2", ["no.such.host.invalid", "loopback"]),
        ("strategy.bucket_cap_mb=1e13 strategy.world_size=2", ["strategy.bucket_cap_mb", "at most"]),
        ("strategy.timeout_s=0", ["strategy.timeout_s=0"]),
        ("strategy.timeout_s=0.01 strategy.world_size=2", ["strategy.timeout_s=0.01", "must be in [1"]),
        (
            "strategy.world_size=2 training.batch_scope=global training.num_microbatches=64",
            ["num_microbatches=64", "divide 32"],
        ),
        ("strategy.static_graph=true training.num_microbatches=2", ["static_graph=true", "num_microbatches=2"]),
        ("strategy.world_size=4 dataset.limit=10 training.batch_size=2", ["dataset.val_fraction"]),
    ],
)
def test_rank_settings_are_checked_before_anything_is_written(arguments, words, train, work_folder):
    done = train(*arguments.split())
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) <= 2, done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    assert list(work_folder.iterdir()) == []


@pytest.mark.soak
def test_off_linux_ranks_start_with_spawn_and_train_the_same(monkeypatch, trained):
    monkeypatch.setattr("laptime.runner.fresh_processes.sys", SimpleNamespace(platform="darwin", modules=sys.modules))
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS has none
    assert fresh_processes.context().get_start_method() == "spawn"
    here = laptime.run(TWO_RANKS)
    assert len({*here["strategy"]["rank_pids"], os.getpid()}) == 3
    assert here["result"] == read_record(trained(*TWO_RANKS))["result"]


FAILING = ["-m", *TINY, NO_REPORT, "training.epochs=1", "optimizer.lr=0.0005,1e30,0.0004"]


@pytest.mark.soak
def test_a_failed_run_does_not_stop_its_sweep_unless_asked_to(train, work_folder):
    done = train(*FAILING, "hydra.sweep.dir=on")
    assert done.returncode == 1
    statuses = [read_record(work_folder / "on" / str(number))["status"] for number in range(3)]
    assert statuses == ["completed", "failed", "completed"]
    assert "1 of 3 runs of the sweep failed" in done.stderr
    assert "1 (optimizer.lr=1e+30): " in done.stderr.splitlines()[-1]

    done = train(*FAILING, "sweep.on_failure=stop", "hydra.sweep.dir=stopped")
    assert done.returncode == 1
    assert "1 of 3 runs of the sweep failed" in done.stderr
    assert "1 of 3 runs of the sweep were not started" in done.stderr
    assert sorted(path.parent.name for path in work_folder.glob("stopped/*/run.json")) == ["0", "1"]
    hashes = [read_record(work_folder / folder / "0")["config_hash"] for folder in ("on", "stopped")]
    assert hashes[0] == hashes[1]


def test_ctrl_c_stops_the_sweep(start):
    process = start(*FAILING, "training.epochs=1000000", "hydra.sweep.dir=here", new_session=True)
    until(lambda: not read_epochs(Path("here/0")).empty, process)
    family = family_of(process)
    os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate()[1]
    assert process.returncode == 130
    assert "2 of 3 runs of the sweep were not started" in errors
    assert "Traceback" not in errors
    assert "training.checkpoint" not in errors, "sweep.resume resumes a sweep"
    assert read_record(Path("here/0"))["status"] == "interrupted"
    assert not Path("here/1").exists()
    assert not psutil.wait_procs(family, timeout=DEADLINE_S)[1]


def test_sweep_trains_the_configured_number_of_processes(train):
    # In a Hydra sweep, Lightning's own launcher trains the second and third job with one process.
    done = train("-m", "strategy.world_size=1,2,4", *TWO_EPOCHS, "strategy.threads_per_rank=auto", NO_REPORT,
                 "hydra.sweep.dir=s")  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = [read_record(Path("s") / str(number)) for number in range(3)]
    pids = [record["strategy"]["rank_pids"] for record in records]
    assert [len(set(run_pids)) for run_pids in pids] == [1, 2, 4]
    assert len({pid for run_pids in pids for pid in run_pids}) == 7, "every run has fresh processes"
    assert len({record["strategy"]["threads_per_rank"] for record in records}) == 1
    assert records[2]["strategy"]["oversubscribed"] == (usable_cores() < 4)


def test_local_ranks_listen_on_the_loopback_interface_only(start):
    process = start(*ENDLESS, "strategy.world_size=2", "hydra.run.dir=here")
    until(lambda: not read_epochs(Path("here")).empty, process)
    listening = {
        connection.laddr.ip
        for member in family_of(process)
        for connection in member.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening and listening <= {"127.0.0.1", "::1"}


@pytest.mark.soak
def test_a_broken_pipe_stops_neither_run_nor_sweep(start):
    """The reader of standard output ends after the first line, as `head -n 1` does."""
    for arguments, is_new_interpreter in (
        ([*TINY, "training.epochs=1", "hydra.run.dir=run"], True),  # the results table is written at the end
        (["-m", "seed=1,2", *TINY, NO_REPORT, "training.epochs=1", "hydra.sweep.dir=sweep"], False),
    ):
        process = start(*arguments, real=is_new_interpreter)
        assert process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(timeout=DEADLINE_S) == 0, errors
    for run in ("run", "sweep/0", "sweep/1"):
        assert read_record(Path(run))["status"] == "completed"


def test_leftover_variables_of_torchrun_do_not_make_ranks(train, the_run):
    done = train(*TINY, "training.epochs=1", TORCHELASTIC_RUN_ID="x", RANK="3")
    assert done.returncode == 0, done.stderr
    assert the_run()[1]["strategy"]["world_size"] == 1


def test_no_process_is_left_when_the_command_ends(train, work_folder):
    done = train(*TWO_RANKS)
    assert done.returncode == 0, done.stderr

    def left() -> list[psutil.Process]:
        in_folder = [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == str(work_folder)]
        return [
            process for process in in_folder if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
        ]

    # The forkserver is killed and Python's resource tracker ends by itself, both shortly after the command.
    until(lambda: not left(), what="no process of the command is left")


@pytest.mark.soak
def test_a_temporary_folder_with_a_long_path_works(work_folder):
    deep = work_folder / ("d" * 100)
    deep.mkdir()
    for overrides in (["strategy.world_size=2"], ["dataset.pipeline=workers", "dataset.num_workers=1"]):
        script = SCRIPTS / "deep_temporary_folder.py"
        done = processes.run(*TINY, "training.epochs=1", *overrides, script=script, environment={"TMPDIR": str(deep)})
        assert done.returncode == 0, done.stderr
