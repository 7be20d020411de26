"""Real faults: too little memory, a killed data worker, a full or read-only disk, a clock that is set back."""

import json
import pwd
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support import processes
from tests.support.configs import changed
from tests.support.faults import small_disk
from tests.support.settings import NO_REPORT, TINY

import laptime
from laptime.data.image_data import cache_dir
from laptime.errors import TrainingFailed, UserError
from laptime.record.directory import expanded
from laptime.record.files import read_epochs, read_record
from laptime.text import format_os_error
from laptime.training.faults import out_of_memory_kills, translate

SCRIPTS = Path(__file__).parents[1] / "user_classes"
CONFIG = changed(training={"batch_size": 96}, dataset={"num_workers": 2}, model={})
TWO_EPOCHS = (*TINY, "training.epochs=2")
NO_MODEL = [override for override in TWO_EPOCHS if not override.startswith("model.")]


# Memory.


def message_with_little_memory(*overrides: str) -> str:
    """The error of a run that may allocate 0.7 GB in addition to the loaded libraries."""
    arguments = ["700000000", *TINY, "training.epochs=1", "hydra.run.dir=run", *overrides]
    done = processes.run(*arguments, script=SCRIPTS / "limited_memory.py")
    assert done.returncode != 0
    record = read_record(Path("run"))
    assert record["status"] == "failed", done.stderr
    return str(record["error"]["message"])


def test_too_little_memory_names_the_batch_size_and_suggests_one(work_folder):
    """Activations of 40,000 samples in layers of 4,096 take 0.66 GB each."""
    message = message_with_little_memory(
        "dataset.num_train=50000", "training.batch_size=40000", "model.hidden_sizes=[4096,4096]"
    )
    assert message.startswith("out of memory with training.batch_size=40000 ("), message
    assert "Try training.batch_size=32768, or training.num_microbatches=2" in message


def test_too_little_memory_for_the_model_names_its_sizes(work_folder):
    message = message_with_little_memory("model.hidden_sizes=[15000,15000]")
    assert message.startswith(
        "out of memory while building the model, which has 0.90 GB of weights (model.hidden_sizes=[15000, 15000]"
    ), message


@pytest.mark.unit
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 20000000 bytes."), "0.02 GB"),
        (MemoryError(), "training.batch_size=96. Try training.batch_size=64, or training.num_microbatches=2"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total"), "2.15 GB more"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB"), "out of memory with"),
        (OSError(12, "Cannot allocate memory"), "out of memory with"),
    ],
)  # fmt: skip
def test_out_of_memory_errors_of_every_device_are_recognized(error, words):
    failure = translate(error, CONFIG)
    assert isinstance(failure, TrainingFailed) and words in str(failure)


@pytest.mark.unit
@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory"), OSError(28, "no space")])
def test_other_errors_are_not_translated(error):
    assert translate(error, CONFIG) is error


@pytest.mark.unit
@pytest.mark.parametrize(("batch_size", "smaller"), [(2, 1), (3, 2), (64, 32), (65, 64), (4096, 2048)])
def test_the_suggested_batch_is_smaller(batch_size, smaller):
    config = changed(training={"batch_size": batch_size}, model={})
    assert f"Try training.batch_size={smaller}" in str(translate(MemoryError(), config))


@pytest.mark.unit
def test_a_batch_of_one_has_no_smaller_one():
    config = changed(training={"batch_size": 1}, model={"image_size": 4096})
    assert "a smaller model or model.image_size" in str(translate(MemoryError(), config))


@pytest.mark.unit
def test_large_images_may_be_smaller_too():
    config = changed(training={"batch_size": 2}, model={"image_size": 4096})
    assert str(translate(MemoryError(), config)).endswith("or a smaller model.image_size.")


@pytest.mark.unit
@pytest.mark.parametrize("name", ["sys/fs/cgroup/memory.events", "proc/vmstat"])
def test_out_of_memory_kills_are_counted(name, tmp_path):
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("oom 4\noom_kill 3\noom_group_kill 0\n")
    assert out_of_memory_kills(tmp_path) == 3
    assert out_of_memory_kills(tmp_path / "nowhere") == 0


# User code, data workers and clocks.


@pytest.mark.soak
def test_weights_without_a_gradient_fail_with_a_remedy(train, work_folder):
    net = ["model._target_=unused_weights.UnusedWeights", "~model.hidden_sizes", "~model.dropout"]
    overrides = [*NO_MODEL, *net, "strategy.world_size=2"]
    failed = train(*overrides, "hydra.run.dir=failed")
    assert failed.returncode == 1 and "Traceback" not in failed.stderr
    message = read_record(Path("failed"))["error"]["message"]
    assert "no gradient" in message and "strategy.static_graph=true" in message
    ended = train(*overrides, "strategy.static_graph=true", "hydra.run.dir=run")
    assert ended.returncode == 0 and read_record(Path("run"))["status"] == "completed"


@pytest.mark.parametrize("name", ["Frozen", "Detached", "Lazy"])
def test_a_network_without_trainable_weights_is_refused(name, call, work_folder):
    done = call(*NO_MODEL, f"model._target_=nothing_to_train.{name}", "~model.hidden_sizes", "~model.dropout")
    assert done.returncode == 2 and f"model={name}" in done.stderr
    assert not list(work_folder.rglob("run.json"))


def test_a_network_that_detaches_only_in_eval_mode_trains(call, work_folder):
    overrides = ["model._target_=nothing_to_train.DetachedInEvaluation", "~model.hidden_sizes", "~model.dropout"]
    assert call(*NO_MODEL, *overrides, "hydra.run.dir=run").returncode == 0
    assert read_record(Path("run"))["status"] == "completed"


@pytest.mark.parametrize("arguments", [[], ["-m", "seed=1", "hydra.sweep.dir=sweep", NO_REPORT]], ids=str)
def test_a_callback_that_calls_sys_exit_fails_the_run(arguments, call, work_folder):
    where = [] if arguments else ["hydra.run.dir=run"]
    done = call(*arguments, *TINY, "+callbacks.ends._target_=process_faults.Exit", *where)
    assert done.returncode == 1
    (record,) = map(read_record, (path.parent for path in work_folder.rglob("run.json")))
    assert record["status"] == "failed"
    if not arguments:
        with pytest.raises(TrainingFailed):
            laptime.run([*TINY, "+callbacks.ends._target_=process_faults.Exit"])


def test_a_killed_data_worker_is_named(train, work_folder):
    kill = "+callbacks.kill._target_=process_faults.KillDataWorkers"
    ended = train(*TWO_EPOCHS, "dataset.pipeline=workers", "dataset.num_workers=2", kill, "hydra.run.dir=run")
    assert ended.returncode == 1 and "Traceback" not in ended.stderr, ended.stderr
    record = read_record(Path("run"))
    assert record["status"] == "failed" and "traceback" not in record["error"]
    message = record["error"]["message"]
    assert "a data worker " in message and "dataset.num_workers=2, or dataset.pipeline=memory" in message
    assert message in ended.stderr
    assert list(read_epochs(Path("run"))["epoch"]) == [0]


def test_a_clock_that_is_set_back_causes_no_negative_times(train, work_folder):
    ended = train(*TWO_EPOCHS, "+callbacks.back._target_=clock_faults.SetClockBack", "hydra.run.dir=run")
    assert ended.returncode == 0, ended.stderr
    record = read_record(Path("run"))
    assert record["status"] == "completed"
    assert (read_epochs(Path("run"))["epoch_time_s"] > 0).all()
    assert record["timing"]["startup_s"] is None and record["timing"]["total_train_s"] > 0
    assert all(value is None or value >= 0 for value in record["timing"].values())
    assert record["quality"]["grade"] is not None


# Disks.


@pytest.mark.parametrize("logger", ["tensorboard", "csv"])
def test_a_logger_that_cannot_write_is_disabled_with_a_warning(logger, train, work_folder):
    folder = Path("run") / logger
    folder.parent.mkdir()
    folder.write_text("in the way")
    ended = train(*TWO_EPOCHS, f"logger={logger}", "hydra.run.dir=run")
    assert ended.returncode == 0, ended.stderr
    record = read_record(Path("run"))
    assert record["status"] == "completed" and record["result"]["test_accuracy"] is not None
    assert list(read_epochs(Path("run"))["epoch"]) == [0, 1]
    log = Path("run/train.log").read_text()
    assert log.count(f"logger.{logger} can't write") == 1 and "the training continues without it" in log
    assert folder.read_text() == "in the way"


@pytest.fixture
def disk(work_folder: Path) -> Iterator[Path]:
    """A separate file system of 8 MB."""
    with small_disk(work_folder / "disk") as folder:
        yield folder


def readable(run_dir: Path) -> dict[str, Any]:
    """The record of a run, after checking that all of its files can be read."""
    read_epochs(run_dir)
    for path in run_dir.rglob("*.json"):
        json.loads(path.read_text())
    return read_record(run_dir)


FILL = "+callbacks.fill._target_=disk_faults.FillDisk"


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk_ends_the_run_with_one_line_and_keeps_what_was_written(ranks, disk, train):
    overrides = [*TINY, "training.epochs=4", f"strategy.world_size={ranks}"]
    ended = train(*overrides, FILL, "logger=tensorboard", "hydra.run.dir=disk/run")
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert "error: " in last and f"{disk}/run/" in last and "No space left on device" in last, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    assert readable(disk / "run")["status"] in ("running", "failed")
    assert set(read_epochs(disk / "run")["epoch"]) >= {0}
    (disk / "filler").unlink()
    # The run can be resumed when the disk has free space again.
    more = train(*overrides, "training.checkpoint=disk/run", "hydra.run.dir=more")
    assert more.returncode == 0, more.stderr
    assert read_record(Path("more"))["status"] == "completed"


@pytest.mark.soak
@pytest.mark.parametrize(("on_failure", "num_runs"), [("continue", 3), ("stop", 1)])
def test_a_sweep_continues_or_stops_when_the_disk_is_full(on_failure, num_runs, disk, train):
    overrides = [
        "-m",
        *TWO_EPOCHS,
        NO_REPORT,
        "seed=1,2,3",
        "hydra.sweep.dir=disk/sweep",
        f"sweep.on_failure={on_failure}",
    ]
    ended = train(*overrides, FILL)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr, ended.stderr
    assert "No space left on device" in ended.stderr
    assert ended.stderr.count(" of the sweep: ") == num_runs
    assert readable(disk / "sweep" / "0")["status"] in ("running", "failed")
    (disk / "filler").unlink()
    again = train("sweep.resume=disk/sweep")
    assert again.returncode == 0, again.stderr
    assert all(readable(disk / "sweep" / str(number))["status"] == "completed" for number in range(3))


def test_a_file_size_limit_fails_with_one_line_that_names_the_file(trained, work_folder):
    """The first limit is too small for run.json, the second only for checkpoints."""
    record = (trained(*TWO_EPOCHS) / "run.json").stat().st_size
    for run, sizes, limit, file in (("one", 16, record * 3 // 4, "run.json"), ("two", 1024, 8 * record, "last.ckpt")):
        overrides = [*NO_MODEL, f"model.hidden_sizes=[{sizes}]", f"hydra.run.dir={run}"]
        ended = processes.run(*overrides, limits={resource.RLIMIT_FSIZE: limit})
        assert ended.returncode == 1
        assert "Traceback" not in ended.stderr, ended.stderr
        last = ended.stderr.splitlines()[-1]
        assert last.startswith("error: ") and last.endswith(f"{file}: File too large."), ended.stderr
        assert readable(Path(run))["status"] in ("running", "failed")
        assert not list(Path(run).glob(".run.json*")) and not list(Path(run).glob("checkpoints/.*"))


def test_a_directory_that_vanishes_fails_with_one_line(train, work_folder):
    ended = train(*TWO_EPOCHS, "hydra.run.dir=run", "+callbacks.move._target_=disk_faults.MoveRunAway")
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr, ended.stderr
    assert "run" in ended.stderr.splitlines()[-1] and "No such file or directory" in ended.stderr


def is_read_only(disk: Path) -> bool:
    (options,) = [
        line.split()[3] for line in Path("/proc/mounts").read_text().splitlines() if line.split()[1] == str(disk)
    ]
    return "ro" in options.split(",")


def test_a_read_only_disk_is_refused_before_training(disk, train):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True, timeout=60)
    assert is_read_only(disk)
    ended = train(*TWO_EPOCHS, "hydra.run.dir=disk/run")
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: hydra.run.dir=disk/run: can't be written (Read-only file system)")


def test_a_disk_that_becomes_read_only_fails_with_one_line(disk, train):
    remount = "+callbacks.remount._target_=disk_faults.RemountReadOnly"
    ended = train(*TWO_EPOCHS, "hydra.run.dir=disk/run", remount)
    assert is_read_only(disk), ended.stderr
    assert ended.returncode == 1
    assert "Read-only file system" in ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    assert readable(disk / "run")["status"] in ("running", "failed")


# Limits of the system or a container.


@pytest.mark.unit
@pytest.mark.parametrize(
    ("error", "word"),
    [
        (
            RuntimeError("unable to allocate shared memory(shm) for file </torch_7_1_4>: No space left on device (28)"),
            "--shm-size",
        ),
        (RuntimeError("unable to write to file </torch_7_1_4>: No space left on device (28)"), "--shm-size"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible"), "--shm-size"),
        (OSError(24, "Too many open files"), "ulimit -n"),
        (RuntimeError("Too many open files. Communication with the workers is no longer possible."), "ulimit -n"),
    ],
)
def test_exhausted_resources_are_named_with_a_remedy(error, word):
    failure = translate(error, CONFIG)
    assert isinstance(failure, TrainingFailed) and word in str(failure) and "dataset.num_workers" in str(failure)


@pytest.mark.unit
def test_other_errors_about_full_disks_are_not_translated():
    for error in (
        OSError(28, "No space left on device"),
        RuntimeError(
            "strategy.comm_hook=shared_memory: unable to allocate shared memory(shm): No space left on device"
        ),
    ):
        assert translate(error, CONFIG) is error
    assert "ulimit" not in format_os_error(OSError(28, "No space left on device"))
    assert "ulimit -n" in format_os_error(OSError(24, "Too many open files"))


def test_an_open_files_limit_fails_with_one_line(work_folder):
    workers = ["dataset.pipeline=workers", "dataset.num_workers=2", "dataset.num_train=4000"]
    overrides = [*TINY, *workers, "training.epochs=1", "hydra.run.dir=run"]
    done = processes.run(*overrides, limits={resource.RLIMIT_NOFILE: 64})
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "ulimit -n" in str((read_record(Path("run"))["error"] or {})["message"])


@pytest.mark.unit
def test_a_user_without_a_home_folder_is_told_to_name_one(monkeypatch):
    def unknown(*_: object) -> None:
        raise KeyError("uid not found")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("getpwuid", "getpwnam"):
        monkeypatch.setattr(pwd, name, unknown)
    for find in (cache_dir, lambda: expanded("dataset.root", "~/data"), lambda: expanded("folder", "~somebody")):
        with pytest.raises(UserError):
            find()
    assert expanded("dataset.root", "data") == Path("data")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_dir() == Path("/somewhere/laptime/datasets")
