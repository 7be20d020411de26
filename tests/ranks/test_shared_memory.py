"""strategy.comm_hook=shared_memory: averages equal gloo's bit for bit; no rank waits for one that died."""

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from tests.support import processes
from tests.support.configs import changed
from tests.support.processes import until
from tests.support.settings import TINY

from laptime.config.schema import Config
from laptime.errors import UserError
from laptime.ranks import shared_memory
from laptime.record.files import read_epochs, read_record
from laptime.runner import rank_plan

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="comm_hook=shared_memory needs Linux")

GLOO = [*TINY, "training.epochs=2"]
SHARED = [*GLOO, "strategy.comm_hook=shared_memory"]
TWO = "strategy.world_size=2"
ENDLESS = [*SHARED, "training.epochs=1000000", "hydra.run.dir=run"]
RUN_DIR = Path("run")
LOSSES = ["epoch", "rank", "train_loss", "train_accuracy", "val_loss", "val_accuracy"]
SCRIPTS = Path(processes.__file__).with_name("scripts")


@pytest.fixture
def losses(trained):
    """losses(*overrides): trains, and returns the losses of each epoch and rank."""
    return lambda *overrides: read_epochs(trained(*overrides))[LOSSES]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["strategy.static_graph=true", "strategy.gradient_as_bucket_view=true"],
        ["strategy.bucket_cap_mb=0.001", "strategy.pin_ranks=false"],
        ["strategy.bucket_cap_mb=0.001", "strategy.shard_optimizer=false"],
    ],
)
def test_two_ranks_learn_the_same_as_with_gloo_bit_for_bit(losses, overrides):
    pd.testing.assert_frame_equal(losses(*SHARED, TWO, *overrides), losses(*GLOO, TWO), check_exact=True)


@pytest.mark.soak
@pytest.mark.parametrize("world_size", [3, pytest.param(4, marks=pytest.mark.soak)])
def test_more_ranks_agree_up_to_rounding(losses, world_size):
    ranks = f"strategy.world_size={world_size}"
    pd.testing.assert_frame_equal(losses(*SHARED, ranks), losses(*GLOO, ranks), rtol=1e-4)


@pytest.mark.soak
@pytest.mark.parametrize(
    "overrides",
    [
        ["training.batch_size=16", "training.num_microbatches=4", "training.gradient_clip_norm=0.5"],
        ["training.precision=bf16-mixed"],
        pytest.param(["dataset.pipeline=workers", "dataset.num_workers=1"], marks=pytest.mark.soak),
        pytest.param(["model=cnn", "dataset=mnist", "dataset.limit=500"], marks=pytest.mark.soak),
    ],
    ids=["accumulated and clipped", "bfloat16", "data workers", "cnn"],
)
def test_shared_memory_works_with_other_settings(losses, overrides):
    if "model=cnn" in overrides:
        without = ("dataset.shape", "dataset.num_", "model.", "dataset=")
        gloo, shared = ([override for override in base if not override.startswith(without)] for base in (GLOO, SHARED))
    else:
        gloo, shared = GLOO, SHARED
    pd.testing.assert_frame_equal(losses(*shared, TWO, *overrides), losses(*gloo, TWO, *overrides), check_exact=True)


@pytest.mark.parametrize("shards", ["true", "false"])
def test_all_ranks_hold_the_same_weights_bit_for_bit(shards, train, work_folder):
    # 4 ranks evaluate 60 samples in equal numbers of steps, so all of them take part in each comparison.
    overrides = ["model._target_=rank_checks.SameWeights", f"strategy.shard_optimizer={shards}"]
    done = train(*SHARED, *overrides, "strategy.world_size=4")
    assert done.returncode == 0, done.stderr
    assert len(list(work_folder.glob("compared by rank *"))) == 4


def test_a_single_rank_with_ddp(losses):
    pd.testing.assert_frame_equal(losses(*SHARED, "strategy.wrap_single_rank=true"), losses(*GLOO), check_exact=True)


def test_the_breakdown_measures_averaging(trained):
    record = read_record(trained(*SHARED, TWO, "measure.breakdown=true"))
    communication = record["communication"]
    assert communication["num_all_reduces_per_step"] == 1
    assert communication["bytes_per_step"] == 4 * record["model"]["num_parameters"]
    assert communication["comm_s"] > 0
    assert communication["overlap_s"] == 0, "ranks do nothing else while they average"
    assert communication["isolated_all_reduce_s"] > 0
    assert record["breakdown"]["communication_s"] > 0


def left_by(pids: list[int]) -> list[Path]:
    """Names in /dev/shm that torch created in these processes."""
    return [path for pid in pids for path in Path("/dev/shm").glob(f"torch_{pid}_*")]


def ranks_of_run(process) -> list[int]:
    """The process ids of the ranks, once they have trained two epochs."""
    until(lambda: len(read_epochs(RUN_DIR)) and read_epochs(RUN_DIR)["epoch"].max() >= 1, process)
    pids: list[int] = read_record(RUN_DIR)["strategy"]["rank_pids"]
    return pids


@pytest.mark.parametrize(("number", "world_size"), [(signal.SIGKILL, 2), (signal.SIGSEGV, 3)])
def test_a_rank_that_dies_ends_the_run_and_leaves_nothing(start, number, world_size):
    process = start(*ENDLESS, f"strategy.world_size={world_size}")
    pids = ranks_of_run(process)
    assert len(pids) == world_size
    os.kill(pids[-1], number)
    errors = process.communicate()[1]
    assert process.returncode == 1
    assert f"rank {world_size - 1} was killed by {number.name}" in errors
    assert not left_by(pids)


@pytest.mark.soak
def test_a_rank_that_is_stuck_ends_the_run(start):
    process = start(*ENDLESS, TWO, "strategy.timeout_s=8")
    os.kill(ranks_of_run(process)[1], signal.SIGSTOP)
    errors = process.communicate()[1]
    assert process.returncode == 1
    assert "rank 1 did not respond within strategy.timeout_s=8" in errors


@pytest.mark.soak
def test_restarted_ranks_resume_over_shared_memory(train, breaking, losses):
    overrides = [*breaking(0, 1, "kill", once=True), *SHARED, "training.epochs=3", "strategy.max_restarts=1"]
    done = train(*overrides, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    record = read_record(RUN_DIR)
    assert [attempt["status"] for attempt in record["attempts"]] == ["failed", "completed"]
    whole = losses(*GLOO, TWO, "training.epochs=3")
    pd.testing.assert_frame_equal(read_epochs(RUN_DIR)[LOSSES], whole, check_exact=True)


@pytest.mark.soak
def test_under_torchrun(losses):
    arguments = ["--standalone", "--nproc-per-node", "2", "-m", "laptime", *SHARED, "hydra.run.dir=joined"]
    done = processes.run(*arguments, module="torch.distributed.run", real=True)
    assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(read_epochs(Path("joined"))[LOSSES], losses(*GLOO, TWO), check_exact=True)


def test_ranks_of_two_machines_are_refused(train):
    done = train(*SHARED, TWO, "model._target_=rank_checks.EachRankOnItsOwnMachine")
    assert done.returncode == 2
    assert "rank 1 is not on the same machine as rank 0" in done.stderr and "comm_hook=none" in done.stderr


def config_for(device: str) -> Config:
    strategy = {"world_size": 2, "threads_per_rank": 1, "comm_hook": "shared_memory"}
    return changed(device={"name": device}, strategy=strategy)


@pytest.mark.unit
def test_other_systems_than_linux_are_refused(monkeypatch):
    monkeypatch.setattr(rank_plan.sys, "platform", "darwin")
    with pytest.raises(UserError, match=r"shared_memory: works only on Linux.*comm_hook=none"):
        rank_plan.plan(config_for("cpu"))


@pytest.mark.unit
def test_gradients_on_an_accelerator_are_refused(monkeypatch):
    monkeypatch.setattr(rank_plan, "available_accelerator", lambda: "cuda")
    monkeypatch.setattr(rank_plan.torch.accelerator, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"shared_memory: .*gradients are on cuda.*comm_hook=none"):
        rank_plan.plan(config_for("cuda"))


@pytest.fixture
def names():
    """Creates names in /dev/shm like torch's, for a process id that can't exist, and removes them afterwards."""
    made = []

    def make(kind, name):
        path = Path(f"/dev/shm/torch_999999999_{os.getpid()}{name}")
        made.append(path)
        getattr(path, kind)()
        return path

    yield make
    for path in made:
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)


@pytest.mark.unit
def test_a_name_that_a_killed_process_left_is_removed(names):
    folder, file = names("mkdir", "0"), names("touch", "1_0")
    shared_memory.unlink_leftover_memory(999999999)
    assert not file.exists()
    assert folder.exists(), "a folder is not torch's, so it stays"


@pytest.mark.soak
@pytest.mark.parametrize("world_size", [2, 5])
def test_parameters_of_several_types_and_fewer_than_ranks(losses, world_size):
    overrides = ["model._target_=rank_checks.WeightsOfSeveralTypes", "~model.hidden_sizes", "~model.dropout"]
    overrides = [*overrides, f"strategy.world_size={world_size}", f"measure.breakdown={str(world_size == 2).lower()}"]
    gloo, shared = ([override for override in base if not override.startswith("model.")] for base in (GLOO, SHARED))
    pd.testing.assert_frame_equal(losses(*shared, *overrides), losses(*gloo, *overrides), rtol=1e-3)


def test_connections_of_other_processes_are_refused(train, work_folder):
    done = train(*SHARED, "model._target_=rank_checks.StrangersConnect", "strategy.world_size=3", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert read_record(RUN_DIR)["status"] == "completed"
    assert sorted(path.name for path in work_folder.glob("stranger*")) == [
        f"stranger {rank} at rank {other} was turned away" for rank, other in ((1, 0), (2, 0), (2, 1))
    ]


@pytest.mark.unit
def test_connect_waits_for_room_in_the_queue_of_another_rank():
    name = f"\0laptime-test-{os.urandom(8).hex()}"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(name)
        listener.listen(0)
        first.connect(name)  # now the queue is full
        with socket.socket(socket.AF_UNIX) as second:
            shared_memory._set_timeout(second, 0.2)
            begin = time.monotonic()
            with pytest.raises(BlockingIOError):
                second.connect(name)
            assert time.monotonic() - begin >= 0.2


@pytest.mark.soak
def test_a_low_limit_on_open_files_is_raised_to_its_maximum():
    overrides = [*SHARED, "strategy.world_size=4", "strategy.bucket_cap_mb=0.0001", "training.epochs=1"]
    overrides += ["model.hidden_sizes=[16,16,16,16,16,16,16,16,16,16,16,16]"]
    done = processes.run(*overrides, script=SCRIPTS / "few_open_files.py")
    assert done.returncode == 0, done.stderr
