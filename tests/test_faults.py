"""Real faults of the machine: no memory, a killed data worker, no place to write, a clock that goes back."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import laptime
from laptime.errors import TrainingFailed
from laptime.faults import explained, out_of_memory_kills
from laptime.record import read_epochs, read_record

QUICK = ["dataset.limit=2000", "training.epochs=2", "measure.breakdown=false", "measure.peak=false"]
CONFIG = {"training": {"batch_size": 96, "accumulate_grad_batches": 1}, "dataset": {"num_workers": 2}, "model": {}}


@pytest.fixture
def own_callback(work_folder, monkeypatch):
    """Writes a module with a callback `Own`; the override that uses it."""

    def make(body: str) -> str:
        (work_folder / "odd.py").write_text(f"from pytorch_lightning.callbacks import Callback\n{body}\n")
        monkeypatch.syspath_prepend(str(work_folder))
        sys.modules.pop("odd", None)
        return "+callbacks.own._target_=odd.Own"

    return make


# Loads everything, then takes away all memory but so much.
LIMITED = """
import resource, sys, psutil, torch
import laptime, laptime.training
limit = psutil.Process().memory_info().vms + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
laptime.run(sys.argv[2:])
"""


def test_too_little_memory_names_the_batch_size_and_suggests_one(work_folder):
    typed = [
        "training.batch_size=40000", "model.hidden_sizes=[2048,2048]", "training.epochs=1", "logger=none",
        "hydra.run.dir=run", "strategy.threads_per_rank=1",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "700000000", *typed], capture_output=True, text=True, timeout=600, check=False
    )
    record = read_record(Path("run"))
    assert record["status"] == "failed"
    assert record["error"]["message"].startswith("out of memory with training.batch_size=40000 ("), done.stderr
    assert "Try training.batch_size=32768, or training.accumulate_grad_batches=2" in record["error"]["message"]


def test_too_little_memory_for_the_model_names_its_sizes(work_folder):
    typed = ["model.hidden_sizes=[15000,15000]", "training.epochs=1", "logger=none", "hydra.run.dir=run"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "700000000", *typed], capture_output=True, text=True, timeout=600, check=False
    )
    record = read_record(Path("run"))
    assert record["status"] == "failed", done.stderr
    message = "out of memory while the model is built, which has 0.95 GB of weights (model.hidden_sizes=[15000, 15000]"
    assert record["error"]["message"].startswith(message)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 20000000 bytes."), "0.02 GB"),
        (MemoryError(), "training.batch_size=96. Try training.batch_size=64, or training.accumulate_grad_batches=2"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"), "2.15 GB more"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB"), "out of memory with"),
        (OSError(12, "Cannot allocate memory"), "out of memory with"),
    ],
)  # fmt: skip
def test_every_devices_words_for_too_little_memory(error, words):
    found = explained(error, CONFIG)
    assert isinstance(found, TrainingFailed) and words in str(found)


def test_weights_without_a_gradient_say_what_to_do(work_folder, monkeypatch):
    (work_folder / "odd.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.used, self.unused = nn.Linear(784, 10), nn.Linear(3, 3)\n\n"
        "    def forward(self, images):\n        return self.used(images.flatten(1))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(work_folder), prepend=os.pathsep)
    monkeypatch.syspath_prepend(str(work_folder))
    sys.modules.pop("odd", None)
    net = ["model._target_=odd.Net", "~model.hidden_sizes", "~model.dropout", "strategy.world_size=2", "logger=none"]
    with pytest.raises(TrainingFailed, match=r"no gradient.*strategy\.static_graph=true"):
        laptime.run([*QUICK, *net])
    assert laptime.run([*QUICK, *net, "strategy.static_graph=true"])["status"] == "completed"


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), OSError(28, "no space")])
def test_other_errors_stay_what_they_are(error):
    assert explained(error, CONFIG) is error


@pytest.mark.parametrize(("batch_size", "smaller"), [(2, 1), (3, 2), (64, 32), (65, 64), (4096, 2048)])
def test_the_suggested_batch_is_smaller(batch_size, smaller):
    config = {"training": {"batch_size": batch_size, "accumulate_grad_batches": 1}, "model": {}}
    assert f"Try training.batch_size={smaller}" in str(explained(MemoryError(), config))


def test_a_batch_of_one_has_no_smaller_one():
    config = {"training": {"batch_size": 1, "accumulate_grad_batches": 1}, "model": {"image_size": 4096}}
    assert "a smaller model or model.image_size" in str(explained(MemoryError(), config))


def test_large_images_may_be_smaller_too():
    config = {"training": {"batch_size": 2, "accumulate_grad_batches": 1}, "model": {"image_size": 4096}}
    assert str(explained(MemoryError(), config)).endswith("or a smaller model.image_size.")


@pytest.mark.parametrize("name", ["sys/fs/cgroup/memory.events", "proc/vmstat"])
def test_kills_for_want_of_memory_are_counted(name, tmp_path):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("oom 4\noom_kill 3\noom_group_kill 0\n")
    assert out_of_memory_kills(tmp_path) == 3
    assert out_of_memory_kills(tmp_path / "nowhere") == 0


def test_a_killed_data_worker_is_named(own_callback):
    kill = own_callback(
        "import multiprocessing\n\n\nclass Own(Callback):\n"
        "    def on_train_batch_end(self, trainer, *rest):\n"
        "        if trainer.current_epoch == 1:\n"
        "            for worker in multiprocessing.active_children():\n"
        "                worker.kill()\n"
    )
    with pytest.raises(
        TrainingFailed, match=r"a data worker .*dataset\.num_workers than 2 or dataset\.pipeline=memory"
    ):
        laptime.run(
            [*QUICK, "dataset.pipeline=workers", "dataset.num_workers=2", "logger=none", kill, "hydra.run.dir=r"]
        )
    record = read_record(Path("r"))
    assert record["status"] == "failed" and "traceback" not in record["error"]
    assert list(read_epochs(Path("r"))["epoch"]) == [0]


@pytest.mark.parametrize("logger", ["tensorboard", "csv"])
def test_a_logger_that_cannot_write_is_left_out_with_a_warning(logger, work_folder):
    folder = Path("run") / ("tensorboard" if logger == "tensorboard" else "csv")
    folder.parent.mkdir()
    folder.write_text("in the way")
    record = laptime.run([*QUICK, f"logger={logger}", "hydra.run.dir=run"])
    assert record["status"] == "completed" and record["result"]["test_accuracy"] > 0.5
    log = Path("run/train.log").read_text()
    assert log.count(f"logger.{logger} can't write") == 1
    assert folder.read_text() == "in the way"


def test_a_clock_that_is_set_back_makes_no_time_negative(own_callback, monkeypatch):
    back = own_callback(
        "import time\nreal = time.time\n\n\nclass Own(Callback):\n"
        "    def on_train_epoch_start(self, trainer, *rest):\n"
        "        time.time = lambda: real() - 7200 * (trainer.current_epoch + 1)\n"
    )
    monkeypatch.setattr(time, "time", time.time)  # comes back afterwards
    record = laptime.run([*QUICK, back, "hydra.run.dir=run"])
    assert record["status"] == "completed"
    assert (read_epochs(Path("run"))["epoch_time_s"] > 0).all()
    assert record["timing"]["startup_s"] is None and record["timing"]["total_train_s"] > 0
    assert all(value is None or value >= 0 for value in record["timing"].values())
    assert record["quality"]["grade"] is not None


def small_disk(folder: Path, size: str) -> None:
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("file systems can't be mounted here")


@pytest.fixture
def disk(work_folder):
    """A file system of 64 MB of its own."""
    folder = work_folder / "disk"
    small_disk(folder, "64m")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def readable(run_dir: Path) -> dict:
    """The record, once everything that is there has been read."""
    read_epochs(run_dir)
    for path in run_dir.rglob("*.json"):
        json.loads(path.read_text())
    return read_record(run_dir)


# Fills the disk after the first epoch, to the last block.
FILL = (
    "from pathlib import Path\n\n\nclass Own(Callback):\n"
    "    def on_train_epoch_start(self, trainer, *rest):\n"
    "        if trainer.current_epoch == 1 and not Path('filled').exists():\n"
    "            Path('filled').touch()\n"
    "            with open('disk/filler', 'wb', buffering=0) as file:\n"
    "                try:\n"
    "                    while True:\n"
    "                        file.write(bytes(4096))\n"
    "                except OSError:\n"
    "                    pass\n"
)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk_ends_the_run_with_one_line_and_keeps_what_was_written(ranks, own_callback, disk, train):
    typed = [*QUICK, "training.epochs=4", "hydra.run.dir=disk/run", f"strategy.world_size={ranks}"]
    ended = train(*typed, own_callback(FILL), PYTHONPATH=str(Path.cwd()))
    assert ended.returncode == 1
    assert "No space left on device" in ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    record = readable(disk / "run")
    assert record["status"] in ("running", "failed")
    assert set(read_epochs(disk / "run")["epoch"]) >= {0}
    (disk / "filler").unlink()
    # The same goes on from there once there is room.
    more = laptime.run([*QUICK, "training.epochs=4", "training.checkpoint=disk/run", f"strategy.world_size={ranks}"])
    assert more["status"] == "completed"


@pytest.mark.parametrize(("on_failure", "num_runs"), [("continue", 3), ("stop", 1)])
def test_a_sweep_goes_on_or_stops_when_the_disk_is_full(on_failure, num_runs, own_callback, disk, train):
    typed = ["-m", *QUICK, "seed=1,2,3", "hydra.sweep.dir=disk/sweep", f"sweep.on_failure={on_failure}", "logger=none"]
    ended = train(*typed, own_callback(FILL), PYTHONPATH=str(Path.cwd()))
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr, ended.stderr
    assert "No space left on device" in ended.stderr
    assert ended.stderr.count(" of the sweep: ") == num_runs
    assert readable(disk / "sweep" / "0")["status"] in ("running", "failed")
    (disk / "filler").unlink()
    again = train("sweep.resume=disk/sweep", PYTHONPATH=str(Path.cwd()))
    assert again.returncode == 0, again.stderr
    assert all(readable(disk / "sweep" / str(number))["status"] == "completed" for number in range(3))


@pytest.mark.parametrize("limit", [30_000, 500_000])
def test_a_limit_on_file_sizes_is_one_line(limit, work_folder):
    """30 kB stop the record sooner or later, 500 kB the checkpoint."""
    program = (
        "import resource, sys; from laptime.cli import main\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\nmain(sys.argv[1:])"
    )
    (work_folder / "limited.py").write_text(program)
    typed = [*QUICK, "training.epochs=20", "logger=none", "hydra.run.dir=run"]
    ended = subprocess.run(
        [sys.executable, "limited.py", *typed], capture_output=True, text=True, timeout=600, check=False
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr, ended.stderr
    assert "File too large" in ended.stderr or "can't be written" in ended.stderr
    assert readable(Path("run"))["status"] in ("running", "failed")
    assert not list(Path("run").glob(".run.json*"))


def test_a_directory_that_vanishes_is_one_line(own_callback, train):
    vanish = own_callback(
        "import os\n\n\nclass Own(Callback):\n"
        "    def on_train_epoch_start(self, trainer, *rest):\n"
        "        if trainer.current_epoch == 1:\n"
        "            os.rename('run', 'elsewhere')\n"
    )
    ended = train(*QUICK, "hydra.run.dir=run", "logger=none", vanish, PYTHONPATH=str(Path.cwd()))
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr, ended.stderr
    assert "run" in ended.stderr.splitlines()[-1] and "No such file or directory" in ended.stderr


def test_a_read_only_disk_is_refused_before_anything_is_trained(disk, train):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    ended = train(*QUICK, "hydra.run.dir=disk/run")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: hydra.run.dir=disk/run: can't be written (Read-only file system)")


def test_a_disk_that_becomes_read_only_is_one_line(own_callback, disk, train):
    remount = own_callback(
        "import subprocess\n\n\nclass Own(Callback):\n"
        "    def on_train_epoch_start(self, trainer, *rest):\n"
        "        if trainer.current_epoch == 1:\n"
        "            subprocess.run(['mount', '-o', 'remount,ro,force', 'disk'])\n"
        "            subprocess.run(['mount', '-o', 'remount,ro', 'disk'])\n"
    )
    ended = train(*QUICK, "hydra.run.dir=disk/run", "logger=none", remount, PYTHONPATH=str(Path.cwd()))
    if ended.returncode == 0:
        pytest.skip("a disk in use can't be made read-only here")
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr, ended.stderr
    assert readable(disk / "run")["status"] in ("running", "failed")
