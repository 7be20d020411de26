"""Real ranks: how many, on which cores, with which data, and the same training whatever their number."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest

import laptime
from laptime import fresh_processes, launch
from laptime.cli import main
from laptime.device import usable_cores
from laptime.errors import UserError
from laptime.launch import plan
from laptime.record import read_epochs, read_record

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
QUICK = ["dataset.limit=2000", "training.epochs=2", "training.batch_size=32", "logger=none", "device=cpu"]


def epochs(record: dict) -> pd.DataFrame:
    return read_epochs(Path(record["config"]["run_dir"]))


def planned(**strategy) -> list:
    defaults = {
        "world_size": 1, "threads_per_rank": "auto", "pin_ranks": True, "wrap_single_rank": False, "backend": "auto",
        "comm_hook": "none",
    }  # fmt: skip
    sweep_world_size = strategy.pop("sweep_world_size", None)
    return plan({"device": {"name": "cpu"}, "dataset": {}, "strategy": defaults | strategy}, sweep_world_size)


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr("laptime.launch.usable_cores", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})


def test_cores_are_shared_among_the_ranks_of_a_single_run(four_cores):
    ranks = planned(world_size=2)
    assert [rank.threads for rank in ranks] == [2, 2]
    assert [rank.cores for rank in ranks] == [(0, 1), (2, 3)]
    assert not ranks[0].oversubscribed


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_in_a_sweep_every_rank_has_the_threads_of_the_largest_run(four_cores, world_size):
    ranks = planned(world_size=world_size, sweep_world_size=4)
    assert {rank.threads for rank in ranks} == {1}
    assert [rank.cores for rank in ranks] == [(number,) for number in range(world_size)]


def test_more_threads_than_cores_is_oversubscribed_and_not_pinned(four_cores):
    ranks = planned(world_size=3, threads_per_rank=2)
    assert {(rank.oversubscribed, rank.cores) for rank in ranks} == {(True, None)}


def test_a_single_run_of_one_rank_leaves_the_process_where_it_is(four_cores):
    (rank,) = planned()
    assert rank.threads == 4 and rank.cores is None


def test_ranks_are_not_pinned_where_a_quota_grants_fewer_cores_than_there_are(four_cores, monkeypatch):
    monkeypatch.setattr("laptime.launch.usable_cores", lambda: 2)
    assert {rank.cores for rank in planned(world_size=2)} == {None}


def test_pinning_can_be_left_out(four_cores):
    assert planned(world_size=2, pin_ranks=False)[0].cores is None


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_are_processes_of_their_own(world_size):
    record = laptime.run([*QUICK, f"strategy.world_size={world_size}"])
    strategy = record["strategy"]
    assert strategy["world_size"] == world_size
    assert strategy["backend"] == "gloo"
    assert len({*strategy["rank_pids"], os.getpid()}) == world_size + 1
    assert not any(psutil.pid_exists(pid) for pid in strategy["rank_pids"])
    rows = epochs(record)
    assert list(rows["rank"]) == [*range(world_size)] * 2
    assert record["batch"]["global_batch_size"] == 32 * world_size


def test_epoch_time_is_the_slowest_ranks_and_samples_are_everybodys():
    record = laptime.run([*QUICK, "strategy.world_size=2"])
    counted = epochs(record).query("not is_warmup")
    assert record["timing"]["epoch_time_s"] == counted["epoch_time_s"].max()
    assert counted["num_samples"].sum() == 1600
    assert record["timing"]["samples_per_s"] == pytest.approx(1600 / counted["epoch_time_s"].max())


def test_world_sizes_follow_the_same_loss_curve_with_a_global_batch():
    # The same samples in every step; sums of gradients in another order differ in float32's last digits.
    curves = []
    for world_size in (1, 2, 4):
        record = laptime.run(
            [*QUICK, "training.batch_scope=global", "model.dropout=0", f"strategy.world_size={world_size}"]
        )
        curves.append(epochs(record).groupby("epoch")[["train_loss", "val_loss"]].first().to_numpy().ravel().tolist())
        assert record["batch"]["global_batch_size"] == 32
    assert curves[1] == pytest.approx(curves[0], rel=1e-3)
    assert curves[2] == pytest.approx(curves[0], rel=1e-3)


def test_one_rank_with_ddp_is_measured_as_such():
    plain, wrapped = (
        laptime.run([*QUICK, f"strategy.wrap_single_rank={value}", "model.dropout=0"]) for value in ("false", "true")
    )
    assert plain["strategy"]["backend"] is None and wrapped["strategy"]["backend"] == "gloo"
    assert plain["strategy"]["rank_pids"] == [os.getpid()] != wrapped["strategy"]["rank_pids"]
    assert wrapped["result"]["train_loss"] == pytest.approx(plain["result"]["train_loss"], rel=1e-4)


def test_every_sample_is_evaluated_once_whatever_the_world_size():
    # 400 validation samples do not divide by 3; with no training at all the figures must agree.
    records = [
        laptime.run([*QUICK, "optimizer.lr=1e-30", "optimizer.weight_decay=0", f"strategy.world_size={world_size}"])
        for world_size in (1, 3)
    ]
    one, three = (record["result"] for record in records)
    for key in ("val_accuracy", "test_accuracy"):
        assert one[key] == three[key]
    for key in ("val_loss", "test_loss"):
        assert one[key] == pytest.approx(three[key], rel=1e-6)


WITH_BATCH_NORM = """
import torch
import torch.distributed as dist
from torch import nn


class WithBatchNorm(nn.Module):
    # Fails where ranks evaluate with different statistics.

    def __init__(self, input_shape, num_classes, **_):
        super().__init__()
        self.norm = nn.BatchNorm2d(input_shape[0])
        self.out = nn.Linear(input_shape[1] * input_shape[2], num_classes)

    def forward(self, images):
        if not self.training and dist.is_initialized() and images.shape[0] > 2:
            gathered = [torch.empty_like(self.norm.running_mean) for _ in range(dist.get_world_size())]
            dist.all_gather(gathered, self.norm.running_mean)
            assert all(torch.equal(each, gathered[0]) for each in gathered), gathered
        return self.out(self.norm(images).flatten(1))
"""


def test_all_ranks_evaluate_with_the_same_batch_norm_statistics(work_folder, monkeypatch):
    (work_folder / "with_batch_norm.py").write_text(WITH_BATCH_NORM)
    monkeypatch.syspath_prepend(str(work_folder))
    record = laptime.run([*QUICK, "strategy.world_size=2", "model._target_=with_batch_norm.WithBatchNorm"])
    assert record["result"]["val_accuracy"] > 0.5


@pytest.mark.parametrize("hook", ["fp16", "bf16", "powersgd"])
def test_compressed_gradients_train_too(hook):
    record = laptime.run([*QUICK, "strategy.world_size=2", f"strategy.comm_hook={hook}"])
    assert record["result"]["val_accuracy"] > 0.7


def test_accumulation_over_ranks_gives_the_gradient_of_the_whole_batch():
    whole, parts = (
        laptime.run([*QUICK, "strategy.world_size=2", "model.dropout=0", f"training.accumulate_grad_batches={parts}"])
        for parts in (1, 4)
    )
    assert parts["result"]["train_loss"] == pytest.approx(whole["result"]["train_loss"], rel=1e-4)


def test_time_limit_stops_all_ranks_at_the_same_step():
    record = laptime.run([*QUICK, "strategy.world_size=2", "training.epochs=100000", "training.time_limit_s=2"])
    assert record["result"]["stop_reason"] == "time_limit"
    assert record["result"]["test_accuracy"] is not None
    epochs = read_epochs(Path(record["config"]["run_dir"]))
    assert epochs["rank"].value_counts().nunique() == 1, "as many whole epochs on one rank as on the other"


def test_resumed_ranks_go_on_as_the_undisturbed_ones(work_folder):
    arguments = [*QUICK, "strategy.world_size=2"]
    laptime.run([*arguments, "training.epochs=3", "hydra.run.dir=whole"])
    laptime.run([*arguments, "training.epochs=1", "hydra.run.dir=first"])
    laptime.run([*arguments, "training.epochs=3", "hydra.run.dir=second", "training.checkpoint=first"])
    columns = ["epoch", "rank", "train_loss", "val_loss"]
    both = pd.concat([read_epochs(Path("first")), read_epochs(Path("second"))])[columns]
    assert both.to_numpy().tolist() == read_epochs(Path("whole"))[columns].to_numpy().tolist()


@pytest.mark.parametrize(
    ("typed", "words"),
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
        ("strategy.timeout_s=0.01 strategy.world_size=2", ["strategy.timeout_s=0.01", "must lie in [1"]),
        (
            "strategy.world_size=2 training.batch_scope=global training.accumulate_grad_batches=64",
            ["accumulate_grad_batches=64", "divide 32"],
        ),
        ("strategy.static_graph=true training.accumulate_grad_batches=2", ["static_graph=true", "accumulate_grad_b"]),
        ("strategy.world_size=4 dataset.limit=10 training.batch_size=2", ["dataset.val_fraction"]),
    ],
)
def test_mistake_about_ranks_is_named_and_leaves_nothing(typed, words, capfd, work_folder):
    with pytest.raises(SystemExit) as end:
        main(typed.split())
    captured = capfd.readouterr()
    assert end.value.code == 2
    assert len(captured.err.strip().splitlines()) <= 2, captured.err
    assert all(word in captured.err for word in words), captured.err
    assert list(work_folder.iterdir()) == []


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr("laptime.launch.available_accelerator", lambda: "cuda")
    monkeypatch.setattr("torch.accelerator.device_count", lambda: 2)


def config_for(device: str, **strategy) -> dict:
    defaults = {
        "world_size": 1, "threads_per_rank": 1, "pin_ranks": True, "wrap_single_rank": False, "backend": "auto",
        "comm_hook": "none",
        "timeout_s": 5, "max_restarts": 0, "name": "ddp",
    }  # fmt: skip
    return {"device": {"name": device, "fallback": "cpu"}, "dataset": {}, "strategy": defaults | strategy}


@pytest.mark.parametrize(
    ("device", "world_size", "ranks"), [("cuda", 2, 2), ("auto", "auto", 2), ("cuda", "auto", 2), ("cpu", "auto", 1)]
)
def test_each_gpu_takes_one_rank(device, world_size, ranks, two_gpus):
    assert [rank.local_rank for rank in plan(config_for(device, world_size=world_size))] == list(range(ranks))


def test_more_ranks_than_gpus_is_refused(two_gpus, monkeypatch, work_folder):
    with pytest.raises(UserError, match=r"world_size=3: there are 2 cuda devices.*CUDA_VISIBLE_DEVICES"):
        plan(config_for("cuda", world_size=3))
    assert len(plan(config_for("cpu", world_size=3))) == 3
    variables = {
        "WORLD_SIZE": 6, "LOCAL_WORLD_SIZE": 3, "TORCHELASTIC_RUN_ID": "x", "RANK": 0, "LOCAL_RANK": 0,
        "GROUP_RANK": 0, "GROUP_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 1,
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(UserError, match=r"world_size=6: there are 2 cuda devices"):
        launch.launch(config_for("cuda"), work_folder, [])


@pytest.mark.parametrize(
    ("device", "accelerator", "backend"),
    [("auto", None, "gloo"), ("cpu", "cuda", "gloo"), ("auto", "cuda", "nccl"), ("mps", "cuda", "gloo"),
     ("xpu", "xpu", "xccl")],
)  # fmt: skip
def test_backend_is_the_devices_own(device, accelerator, backend, monkeypatch):
    monkeypatch.setattr("laptime.launch.available_accelerator", lambda: accelerator)
    assert launch.backend_of(config_for(device)) == backend
    assert launch.backend_of(config_for(device, backend="gloo")) == "gloo"


def test_world_size_auto_is_a_rank_per_gpu_or_one_on_the_cpu(monkeypatch):
    import torch

    from laptime.launch import num_ranks

    def ranks(device: str, world_size: int | str = "auto") -> int:
        return num_ranks({"device": {"name": device}, "strategy": {"world_size": world_size}})

    assert (ranks("auto"), ranks("cpu"), ranks("cuda"), ranks("cpu", 3)) == (1, 1, 1, 3)
    monkeypatch.setattr("laptime.launch.available_accelerator", lambda: "cuda")
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    assert (ranks("auto"), ranks("cpu"), ranks("cuda"), ranks("mps")) == (4, 1, 4, 1)


def test_off_linux_ranks_start_with_spawn_and_train_the_same(monkeypatch):
    there = laptime.run([*QUICK, "strategy.world_size=2", "strategy.threads_per_rank=1"])
    monkeypatch.setattr("laptime.fresh_processes.sys", SimpleNamespace(platform="darwin", modules=sys.modules))
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS has none
    assert fresh_processes.context().get_start_method() == "spawn"
    here = laptime.run([*QUICK, "strategy.world_size=2", "strategy.threads_per_rank=1"])
    assert len({*here["strategy"]["rank_pids"], os.getpid()}) == 3
    assert here["result"] == there["result"]


def test_on_macos_ranks_are_not_pinned(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr("laptime.launch.usable_cores", lambda: 4)
    assert {rank.cores for rank in planned(world_size=2)} == {None}


FAILING = ["-m", "optimizer.lr=0.0005,1e30,0.0004", *QUICK, "training.epochs=1", "measure.breakdown=false"]


def test_a_failed_run_does_not_stop_its_sweep_unless_asked_to(train, work_folder):
    done = train(*FAILING, "hydra.sweep.dir=on")
    assert done.returncode == 1
    statuses = [read_record(work_folder / "on" / str(number))["status"] for number in range(3)]
    assert statuses == ["completed", "failed", "completed"]
    assert (
        "1 of 3 runs of the sweep failed" in done.stderr and "1 (optimizer.lr=1e+30): " in done.stderr.splitlines()[-1]
    )

    done = train(*FAILING, "sweep.on_failure=stop", "hydra.sweep.dir=stopped")
    assert done.returncode == 1
    assert "1 of 3 runs of the sweep failed" in done.stderr
    assert "1 of 3 runs of the sweep were not started" in done.stderr
    assert sorted(path.parent.name for path in work_folder.glob("stopped/*/run.json")) == ["0", "1"]
    hashes = [read_record(work_folder / folder / "0")["config_hash"] for folder in ("on", "stopped")]
    assert hashes[0] == hashes[1]


def test_ctrl_c_stops_the_sweep(work_folder):
    process = subprocess.Popen(
        [sys.executable, str(TRAIN), *FAILING[:2], *QUICK, "training.epochs=100000", "hydra.sweep.dir=here"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while read_epochs(Path("here/0")).empty:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    os.killpg(process.pid, signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "2 of 3 runs of the sweep were not started" in errors
    assert "Traceback" not in errors
    assert "training.checkpoint" not in errors, "a sweep goes on with sweep.resume"
    assert read_record(Path("here/0"))["status"] == "interrupted"
    assert not Path("here/1").exists()
    assert not psutil.wait_procs(family, timeout=60)[1]


def test_sweep_trains_as_many_processes_as_it_says(train, work_folder):
    # Lightning's own launcher in a Hydra sweep trained one process in the second and third job.
    done = train("-m", "strategy.world_size=1,2,4", *QUICK)
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in sorted(work_folder.glob("multirun/*/*/*/run.json"))]
    pids = [record["strategy"]["rank_pids"] for record in records]
    assert [len(set(each)) for each in pids] == [1, 2, 4]
    assert len({pid for each in pids for pid in each}) == 7, "every run has fresh processes"
    assert len({record["strategy"]["threads_per_rank"] for record in records}) == 1
    assert records[2]["strategy"]["oversubscribed"] == (usable_cores() < 4)


def test_local_ranks_listen_on_the_loopback_interface_only(work_folder):
    process = subprocess.Popen(
        [sys.executable, str(TRAIN), *QUICK, "strategy.world_size=2", "training.epochs=100000", "hydra.run.dir=here"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while read_epochs(Path("here")).empty:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        listening = {
            connection.laddr.ip
            for each in family
            for connection in each.net_connections()
            if connection.status == psutil.CONN_LISTEN
        }
        assert listening and listening <= {"127.0.0.1", "::1"}
    finally:
        process.terminate()
        process.communicate()


def test_output_that_nobody_reads_stops_neither_run_nor_sweep(work_folder):
    quick = "dataset.limit=1000 training.epochs=1 logger=none device=cpu"
    for arguments in (f"{quick} hydra.run.dir=run", f"-m seed=1,2 {quick} hydra.sweep.dir=sweep"):
        script = f"{sys.executable} {TRAIN} {arguments} | head -c 1; exit ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    for run in ("run", "sweep/0", "sweep/1"):
        assert read_record(work_folder / run)["status"] == "completed"


def test_left_over_variables_of_torchrun_are_no_ranks(train, the_run):
    done = train("dataset.limit=1000", "training.epochs=1", "logger=none", TORCHELASTIC_RUN_ID="x", RANK="3")
    assert done.returncode == 0, done.stderr
    assert the_run()[1]["strategy"]["world_size"] == 1


def test_no_process_is_left_when_the_command_ends(train, work_folder):
    done = train("dataset.limit=1000", "training.epochs=1", "logger=none", "strategy.world_size=2")
    assert done.returncode == 0, done.stderr
    left = [each for each in psutil.process_iter(["cwd"]) if each.info["cwd"] == str(work_folder)]
    assert [each for each in left if each.pid != os.getpid() and each.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize("typed", [["strategy.world_size=2"], ["dataset.pipeline=workers", "dataset.num_workers=1"]])
def test_a_temporary_folder_too_deep_for_sockets_is_none(work_folder, typed):
    deep = work_folder / ("d" * 100)
    deep.mkdir()
    command = [sys.executable, "-m", "laptime", "dataset.limit=500", "training.epochs=1", *typed]
    environment = os.environ | {"TMPDIR": str(deep)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
