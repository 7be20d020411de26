"""strategy.comm_hook=shared_memory: the same averages as gloo's, the same bits on every rank, and nobody waits for the
dead."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest

import laptime
from laptime import launch, shared_memory
from laptime.errors import RankFailed, UserError
from laptime.record import read_epochs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="shared memory of this kind is Linux's")

QUICK = ["device=cpu", "dataset.limit=2000", "training.epochs=2", "logger=none", "callbacks.progress_bar=null",
         "measure.breakdown=false", "measure.peak=false", "strategy.threads_per_rank=1"]  # fmt: skip
SHARED = [*QUICK, "strategy.comm_hook=shared_memory"]
LOSSES = ["epoch", "rank", "train_loss", "train_accuracy", "val_loss", "val_accuracy"]


def losses(*overrides: str) -> pd.DataFrame:
    folder = f"run{len(list(Path().glob('run*')))}"
    laptime.run([*overrides, f"hydra.run.dir={folder}"])
    return read_epochs(Path(folder))[LOSSES]


def test_two_ranks_learn_what_they_learn_over_gloo_bit_for_bit(work_folder):
    gloo = losses(*QUICK, "strategy.world_size=2")
    for overrides in (
        [],
        ["strategy.gradient_as_bucket_view=true"],
        ["strategy.static_graph=true"],
        ["strategy.bucket_cap_mb=0.5"],
        ["strategy.pin_ranks=false"],
    ):
        pd.testing.assert_frame_equal(losses(*SHARED, "strategy.world_size=2", *overrides), gloo, check_exact=True)


@pytest.mark.parametrize("world_size", [3, 4])
def test_more_ranks_agree_up_to_rounding(work_folder, world_size):
    ranks = f"strategy.world_size={world_size}"
    pd.testing.assert_frame_equal(losses(*SHARED, ranks), losses(*QUICK, ranks), rtol=1e-4)


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.accumulate_grad_batches=4"],
        ["training.gradient_clip_norm=0.5"],
        ["training.precision=bf16-mixed"],
        ["model=cnn", "dataset.limit=500"],
        ["dataset.pipeline=workers", "dataset.num_workers=1"],
    ],
)
def test_it_fits_the_other_settings(work_folder, overrides):
    ranks = "strategy.world_size=2"
    same = losses(*SHARED, ranks, *overrides)
    pd.testing.assert_frame_equal(same, losses(*QUICK, ranks, *overrides), check_exact=True)


SAME_WEIGHTS = """
import torch
import torch.distributed as dist
from laptime.models.mlp import MLP

class SameWeights(MLP):
    def forward(self, images):
        if not self.training and dist.is_initialized():
            for weight in self.parameters():
                there = [torch.empty_like(weight) for _ in range(dist.get_world_size())]
                dist.all_gather(there, weight.detach())
                assert all(torch.equal(each, there[0]) for each in there)
        return super().forward(images)
"""


def test_all_ranks_hold_the_same_weights_bit_for_bit(work_folder, monkeypatch):
    (work_folder / "same_weights.py").write_text(SAME_WEIGHTS)
    monkeypatch.syspath_prepend(str(work_folder))
    # 2,000 samples are evaluated by 4 ranks in equal steps, so all of them meet in each comparison.
    typed = ["model._target_=same_weights.SameWeights", "strategy.world_size=4"]
    record = laptime.run([*SHARED, *typed])
    assert record["result"]["val_accuracy"] > 0.7


def test_one_rank_has_nobody_to_wait_for(work_folder):
    plain = losses(*QUICK)
    for typed in ([], ["strategy.wrap_single_rank=true"]):
        pd.testing.assert_frame_equal(losses(*SHARED, *typed), plain, check_exact=True)


def test_the_breakdown_says_what_averaging_takes(work_folder):
    record = laptime.run([*SHARED, "strategy.world_size=2", "measure.breakdown=true"])
    found = record["communication"]
    assert found["num_all_reduces_per_step"] == 1
    assert found["bytes_per_step"] == 4 * record["model"]["num_parameters"]
    assert found["comm_s"] > 0
    assert found["overlap_s"] == 0, "ranks do nothing else while they average"
    assert found["bare_all_reduce_s"] > 0
    assert record["breakdown"]["communication_s"] > 0


def left_by(pids: list[int]) -> list[Path]:
    """Names of shared memory that torch made in these processes."""
    return [path for pid in pids for path in Path("/dev/shm").glob(f"torch_{pid}_*")]


def pids_of(folder: Path) -> list[int]:
    """The ranks of the run there, once they train."""
    record = None
    while not (record and record["timing"]["epoch_time_s"]):
        time.sleep(0.05)
        record = laptime.record.read_record(folder) if (folder / "run.json").exists() else None
        assert not record or record["status"] == "running"
    return record["strategy"]["rank_pids"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
@pytest.mark.parametrize("world_size", [2, 3])
def test_a_rank_that_dies_ends_the_run_and_leaves_nothing(work_folder, number, world_size):
    pids = []

    def kill() -> None:
        pids.extend(pids_of(work_folder / "run"))
        os.kill(pids[-1], number)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(RankFailed, match=f"rank {world_size - 1} was killed by {number.name}"):
        laptime.run([*SHARED, f"strategy.world_size={world_size}", "training.epochs=100000", "hydra.run.dir=run"])
    killer.join()
    assert len(pids) == world_size
    assert not left_by(pids)


def test_a_rank_that_is_stuck_is_given_up(work_folder):
    stopped = []

    def stop() -> None:
        stopped.append(pids_of(work_folder / "run")[1])
        os.kill(stopped[0], signal.SIGSTOP)

    stopper = threading.Thread(target=stop, daemon=True)
    stopper.start()
    with pytest.raises(RankFailed, match=r"rank 1 did not answer within strategy.timeout_s=15"):
        laptime.run(
            [*SHARED, "strategy.world_size=2", "training.epochs=100000", "strategy.timeout_s=15", "hydra.run.dir=run"]
        )
    stopper.join()


def test_restarted_ranks_go_on(work_folder):
    def kill() -> None:
        os.kill(pids_of(work_folder / "run")[0], signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    typed = [*SHARED, "strategy.world_size=2", "training.epochs=30", "strategy.max_restarts=1", "dataset.limit=5000"]
    record = laptime.run([*typed, "hydra.run.dir=run"])
    killer.join()
    assert record["status"] == "completed"
    assert len(record["attempts"]) == 2


def test_under_torchrun(work_folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "laptime", *SHARED]
    done = subprocess.run([*command, "hydra.run.dir=joined"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    alone = losses(*QUICK, "strategy.world_size=2")
    pd.testing.assert_frame_equal(read_epochs(Path("joined"))[LOSSES], alone, check_exact=True)


def test_ranks_of_two_machines_are_refused(work_folder, monkeypatch):
    (work_folder / "elsewhere.py").write_text(
        "import os\nfrom laptime import shared_memory\nfrom laptime.models.mlp import MLP\n"
        "class Elsewhere(MLP):\n"
        "    def __init__(self, *args, **kwargs):\n"
        "        super().__init__(*args, **kwargs)\n"
        "        shared_memory._machine = lambda: f'machine of {os.getpid()}'\n"
    )
    monkeypatch.syspath_prepend(str(work_folder))
    with pytest.raises(UserError, match=r"rank 1 is on another machine than rank 0.*comm_hook=none"):
        laptime.run([*SHARED, "strategy.world_size=2", "model._target_=elsewhere.Elsewhere"])


def test_systems_that_have_no_such_memory_are_refused(work_folder, monkeypatch):
    monkeypatch.setattr(launch.sys, "platform", "darwin")
    with pytest.raises(UserError, match=r"shared_memory: only on Linux.*comm_hook=none"):
        laptime.run([*SHARED, "strategy.world_size=2"])


def test_gradients_on_an_accelerator_are_refused(work_folder, monkeypatch):
    monkeypatch.setattr(launch, "_accelerator", lambda config: "cuda")
    monkeypatch.setattr(launch.torch.accelerator, "device_count", lambda: 2)
    with pytest.raises(UserError, match=r"shared_memory: gradients on cuda.*comm_hook=none"):
        laptime.run([*SHARED, "device=cuda", "strategy.world_size=2"])


@pytest.fixture
def names():
    """Makes names in /dev/shm as torch would for a process that there can't be, and removes them."""
    made = []

    def make(kind, name):
        path = Path(f"/dev/shm/torch_999999999_{name}")
        made.append(path)
        getattr(path, kind)()
        return path

    yield make
    for path in made:
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)


def test_a_name_that_a_killed_process_left_is_removed(names):
    folder, file = names("mkdir", "0"), names("touch", "1_0")
    shared_memory.remove_left_behind(999999999)
    assert not file.exists()
    assert folder.exists(), "what isn't torch's is left alone, and disturbs nobody"


MIXED = """
import torch
from torch import nn

class Mixed(nn.Module):
    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.first = nn.Linear(784, 20)
        self.second = nn.Linear(20, num_classes, dtype=torch.float64)
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, images):
        return (self.second(self.first(images.flatten(1)).relu().double()) * self.scale).float()
"""


@pytest.mark.parametrize("world_size", [2, 5])
def test_parameters_of_several_types_and_fewer_than_ranks(work_folder, monkeypatch, world_size):
    (work_folder / "mixed.py").write_text(MIXED)
    monkeypatch.syspath_prepend(str(work_folder))
    typed = ["model._target_=mixed.Mixed", "~model.hidden_sizes", "~model.dropout", f"strategy.world_size={world_size}"]
    shared = losses(*SHARED, *typed, "measure.breakdown=true")
    pd.testing.assert_frame_equal(shared, losses(*QUICK, *typed), rtol=1e-3)


STRANGER = """
import re, socket, sys, time
seen = set()
print("ready", flush=True)
while True:
    for name in set(re.findall(r"@(laptime-[0-9a-f]+)", open("/proc/net/unix").read())) - seen:
        seen.add(name)
        stranger = socket.socket(socket.AF_UNIX)
        try:
            stranger.connect("\\0" + name)
            stranger.send(b"\\7\\0\\0\\0" * 5)
        except OSError:
            pass
"""


def test_strangers_that_connect_are_no_ranks(work_folder):
    with subprocess.Popen([sys.executable, "-c", STRANGER], stdout=subprocess.PIPE) as stranger:
        assert stranger.stdout is not None
        stranger.stdout.readline()
        try:
            record = laptime.run([*SHARED, "strategy.world_size=3"])
        finally:
            stranger.kill()
    assert record["status"] == "completed"


def test_a_low_limit_of_open_files_is_raised_as_far_as_it_may_be(work_folder):
    command = [sys.executable, "-m", "laptime", *SHARED, "strategy.world_size=4", "strategy.bucket_cap_mb=0.0001"]
    command += ["model.hidden_sizes=[16,16,16,16,16,16,16,16,16,16,16,16]", "training.epochs=1"]
    limited = ["bash", "-c", 'ulimit -S -n 64; exec "$@"', "bash", *command]
    done = subprocess.run(limited, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
