"""Real training on real data through the public doors: the command and laptime.run."""

import gzip
import json
import math
import pickle
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import laptime
from laptime.record import EPOCH_COLUMNS, new_record, read_epochs

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
QUICK = ["dataset.limit=2000", "training.epochs=2", "training.batch_size=32"]
NO_DROPOUT = [*QUICK, "model.dropout=0"]


def losses(record: dict) -> list[tuple[float, float]]:
    epochs = read_epochs(Path(record["config"]["run_dir"]))
    return list(zip(epochs["train_loss"], epochs["val_loss"], strict=True))


@pytest.fixture(scope="module")
def default_run(tmp_path_factory, cache_folder):
    """python train.py, once for all tests that look at what it leaves."""
    folder = tmp_path_factory.mktemp("default")
    done = subprocess.run([sys.executable, str(TRAIN)], capture_output=True, text=True, cwd=folder, timeout=600)
    assert done.returncode == 0, done.stderr
    (record_path,) = folder.glob("outputs/*/*/run.json")
    return done, record_path.parent, json.loads(record_path.read_text())


def test_default_run_learns_mnist(default_run):
    _, _, record = default_run
    assert record["status"] == "completed"
    assert (record["dataset"]["num_train"], record["dataset"]["num_test"]) == (48_000, 10_000)
    assert record["result"]["test_accuracy"] >= 0.975


def test_record_has_every_key_of_the_schema(default_run):
    _, _, record = default_run
    schema = new_record()
    assert record.keys() == schema.keys()
    for name, section in schema.items():
        if isinstance(section, dict):
            assert record[name].keys() == section.keys(), name


def test_record_is_complete_where_something_was_measured(default_run):
    _, run_dir, record = default_run
    for section, may_be_null in {
        "device": (),
        "dataset": ("limit",),
        "model": (),
        "strategy": ("backend",),
        "batch": (),
        "timing": ("compile_s", "straggling"),
        "result": ("time_to_accuracy",),
        "resources": (
            "peak_device_memory_bytes", "device_memory_bytes", "driver_memory_bytes",
            "energy_joules", "energy_joules_per_1000_samples",
        ),
        "breakdown": ("host_to_device_s", "communication_s"),
        "peak": (),
    }.items():  # fmt: skip
        null = {key for key, value in record[section].items() if value is None}
        assert null == set(may_be_null), section
    assert record["error"] is None
    assert record["environment"]["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert record["model"]["num_parameters"] == 535_818
    assert record["config"]["run_dir"] == str(run_dir)
    assert Path(run_dir / "checkpoints" / "last.ckpt").is_file()
    assert Path(run_dir / "checkpoints" / "best.ckpt").is_file()
    assert Path(run_dir / ".hydra" / "config.yaml").is_file()


def test_timing_follows_from_epochs_csv(default_run):
    _, run_dir, record = default_run
    epochs = pd.read_csv(run_dir / "epochs.csv")
    assert tuple(epochs.columns) == EPOCH_COLUMNS
    assert list(epochs["is_warmup"]) == [True, False, False, False, False]
    median = epochs.loc[~epochs["is_warmup"], "epoch_time_s"].median()
    assert record["timing"]["epoch_time_s"] == median
    assert record["timing"]["samples_per_s"] == pytest.approx(48_000 / median)
    assert record["timing"]["steps_per_s"] == pytest.approx(750 / median)
    assert (epochs["data_wait_s"] < epochs["epoch_time_s"]).all()


def test_terminal_tells_what_was_measured(default_run):
    done, run_dir, record = default_run
    assert "535,818 parameters" in done.stdout
    assert f"{record['result']['test_accuracy']:.2%}" in done.stdout
    assert f"tensorboard --logdir {run_dir.relative_to(run_dir.parents[2])}" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr, "control characters without a terminal"
    assert done.stderr.count("epoch ") == 5
    log = (run_dir / "train.log").read_text()
    assert "[rank 0][INFO]" in log and "epoch 5/5" in log


def test_every_epoch_says_what_else_the_machine_did(default_run):
    _, _, record = default_run
    noise, quality = record["noise"], record["quality"]
    assert [epoch["epoch"] for epoch in noise["epochs"]] == [0, 1, 2, 3, 4]
    assert [epoch["is_warmup"] for epoch in noise["epochs"]] == [True, False, False, False, False]
    assert quality["grade"] in "ABC" and (quality["grade"] == "A") == (quality["reasons"] == [])
    if sys.platform == "linux":
        assert all(epoch["wall_s"] > 0 and epoch["other_cores"] >= 0 for epoch in noise["epochs"])
        assert noise["load_before"] >= 0


def test_tensorboard_reads_the_tags_back(default_run):
    _, run_dir, _ = default_run
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= {
        "time/epoch_s", "throughput/samples_per_s", "train/loss", "train/accuracy", "val/loss", "val/accuracy",
        "test/accuracy", "lr", "memory/rss_bytes", "cpu/percent",
    }  # fmt: skip
    epochs = pd.read_csv(run_dir / "epochs.csv")
    times = events.Scalars("time/epoch_s")
    assert [event.step for event in times] == list(epochs["epoch"])
    assert [event.value for event in times] == pytest.approx(list(epochs["epoch_time_s"]), rel=1e-6)
    assert "_hparams_/experiment" in events.summary_metadata


def test_run_from_python_returns_the_record():
    record = laptime.run([*QUICK, "model=cnn"])
    run_dir = Path(record["config"]["run_dir"])
    assert json.loads((run_dir / "run.json").read_text())["result"] == json.loads(json.dumps(record["result"]))
    assert record["model"]["name"] == "cnn"
    assert record["dataset"]["limit"] == 2000


def test_run_from_python_leaves_the_callers_hydra_and_log_alone():
    import logging

    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from laptime.compose import config_dir

    handlers = logging.getLogger().handlers[:]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        laptime.run([*QUICK, "training.epochs=1"])
        assert GlobalHydra.instance().is_initialized()
        assert compose("config").training.epochs == 5
    assert logging.getLogger().handlers == handlers


def test_cnn_learns_mnist():
    record = laptime.run(["model=cnn", "dataset.limit=10000", "training.epochs=2"])
    assert record["result"]["test_accuracy"] > 0.93


def test_same_seed_gives_the_same_losses_bit_for_bit_and_another_does_not():
    first, again, other = (losses(laptime.run([*QUICK, f"seed={seed}"])) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_seed_zero_is_a_seed():
    assert losses(laptime.run([*QUICK, "seed=0"])) == losses(laptime.run([*QUICK, "seed=0"]))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_steps_per_execution_changes_nothing_but_the_bookkeeping(precision):
    # With one autocast context around several steps, bf16 would train on stale copies of the weights.
    one, many = (
        losses(laptime.run([*QUICK, f"training.precision={precision}", f"training.steps_per_execution={steps}"]))
        for steps in (1, 16)
    )
    assert one == many


def test_accumulated_parts_give_the_gradient_of_the_whole_batch():
    whole, parts = (losses(laptime.run([*NO_DROPOUT, f"training.accumulate_grad_batches={parts}"])) for parts in (1, 4))
    assert parts == [pytest.approx(each, rel=1e-4) for each in whole]
    assert parts != whole, "nothing was accumulated"


def test_pipelines_give_the_same_losses():
    memory, workers = (losses(laptime.run([*QUICK, f"dataset.pipeline={name}"])) for name in ("memory", "workers"))
    assert workers == [pytest.approx(each, rel=1e-4) for each in memory]


def test_bf16_trains_close_to_float32():
    exact, mixed = (laptime.run([*QUICK, f"training.precision={precision}"]) for precision in ("32-true", "bf16-mixed"))
    assert mixed["device"]["precision"] == "bf16-mixed"
    assert losses(mixed) != losses(exact)
    assert mixed["result"]["val_loss"] == pytest.approx(exact["result"]["val_loss"], rel=0.1)


def test_clipping_keeps_the_gradient_small():
    free, clipped = (
        laptime.run([*QUICK, "optimizer=sgd", "training.epochs=1", f"training.gradient_clip_norm={norm}"])
        for norm in ("null", "1e-6")
    )
    assert free["result"]["train_loss"] < 1.5
    assert clipped["result"]["train_loss"] == pytest.approx(math.log(10), abs=0.1), "the weights must hardly move"


def learnable(count: int, shape: tuple[int, ...], generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Noisy uint8 images with a bright stripe whose height tells their class, and the labels."""
    labels = generator.integers(0, 10, count)
    images = generator.integers(0, 50, (count, *shape))
    for image, label in zip(images, labels, strict=True):
        image[..., 2 * label + 4 : 2 * label + 6, :] = 220
    return images.astype(np.uint8), labels.astype(np.uint8)


def test_trains_on_fashion_mnist_files(work_folder):
    # IDX: a magic number, the sizes as big-endian int32, the bytes.
    for prefix, count in (("train", 600), ("t10k", 100)):
        images, labels = learnable(count, (28, 28), np.random.default_rng(count))
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (work_folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
        header = struct.pack(">II", 0x801, count)
        (work_folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + labels.tobytes()))
    record = laptime.run(
        ["dataset=fashion_mnist", "dataset.root=.", "dataset.verify=false", "training.epochs=8", "logger=none",
         "training.batch_size=16"]
    )  # fmt: skip
    assert record["dataset"]["name"] == "fashion_mnist"
    assert (record["dataset"]["num_train"], record["dataset"]["num_val"], record["dataset"]["num_test"]) == (
        480,
        120,
        100,
    )
    assert record["result"]["test_accuracy"] > 0.6


@pytest.mark.skipif(not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="Debian's package is not installed")
def test_trains_on_the_real_fashion_mnist():
    record = laptime.run(["dataset=fashion_mnist", "dataset.limit=5000", "training.epochs=3", "logger=none"])
    assert record["result"]["test_accuracy"] > 0.75


@pytest.mark.parametrize("pipeline", ["memory", "workers"])
def test_cnn_trains_on_cifar10_files_with_augmentation(pipeline, work_folder):
    folder = work_folder / "cifar-10-batches-py"
    folder.mkdir()
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        images, labels = learnable(100, (3, 32, 32), np.random.default_rng(number))
        batch = {"data": images.reshape(100, -1), "labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(batch))
    before = set(psutil.Process().children())
    record = laptime.run(
        ["experiment=cnn_cifar10", "dataset.root=.", "dataset.verify=false", f"dataset.pipeline={pipeline}",
         "training.epochs=4", "logger=none", "training.batch_size=16"]
    )  # fmt: skip
    assert record["model"]["num_parameters"] == 1_276_234
    assert record["config"]["dataset"]["horizontal_flip"] is True
    assert (record["dataset"]["num_train"], record["dataset"]["num_test"]) == (400, 100)
    assert record["result"]["test_accuracy"] > 0.3
    assert set(psutil.Process().children()) <= before, "data workers were left behind"


def assert_whole_epochs(run_dir: Path) -> None:
    """All epochs were recorded up to the one that was broken off; none was, if the end fell between two."""
    log = (run_dir / "train.log").read_text()
    num_whole = len(re.findall(r"epoch \d+/100000  ", log))
    broken_off = [int(number) for number in re.findall(r"epoch (\d+) was broken off and is not recorded", log)]
    epochs = read_epochs(run_dir)
    assert list(epochs["epoch"]) == list(range(num_whole))
    assert (epochs["num_samples"] == 1600).all() and (epochs["epoch_time_s"] > 0).all()
    assert broken_off in ([], [num_whole + 1])


def test_epoch_that_a_callback_breaks_off_is_not_recorded():
    timer = '+callbacks.t={_target_:pytorch_lightning.callbacks.Timer,duration:"00:00:00:01"}'
    record = laptime.run([*QUICK, "training.epochs=100000", timer])
    assert_whole_epochs(Path(record["config"]["run_dir"]))


def test_loss_that_turns_nan_in_the_last_step_fails_the_run_too():
    with pytest.raises(laptime.TrainingFailed, match="validation loss is"):
        laptime.run(
            ["dataset.limit=600", "training.epochs=1", "training.batch_size=480", "optimizer.lr=1e30", "logger=none"]
        )


@pytest.mark.parametrize("option", ["adam", "adamw", "sgd"])
def test_every_optimizer_learns(option):
    record = laptime.run([*QUICK, f"optimizer={option}", "scheduler=none"])
    assert record["result"]["val_accuracy"] > 0.7


@pytest.mark.parametrize(
    ("overrides", "rates"),
    [
        (["scheduler.step_size=1"], [0.01, 0.001, 0.0001]),
        (["scheduler=none"], [0.01, 0.01, 0.01]),
        (["scheduler=cosine"], [0.01, 0.0075, 0.0025]),
    ],
)
def test_scheduler_steps_once_per_epoch(overrides, rates):
    record = laptime.run([*QUICK, "training.epochs=3", "optimizer.lr=0.01", *overrides])
    assert list(read_epochs(Path(record["config"]["run_dir"]))["lr"]) == pytest.approx(rates)


def test_plateau_scheduler_lowers_the_rate_when_the_validation_loss_stands_still():
    record = laptime.run(
        [*QUICK, "training.epochs=4", "scheduler=plateau", "scheduler.patience=0", "scheduler.mode=max",
         "optimizer.lr=0.001"]
    )  # fmt: skip
    rates = list(read_epochs(Path(record["config"]["run_dir"]))["lr"])
    assert rates[0] == 0.001 and rates[-1] < 0.001


def test_early_stopping_ends_a_run_that_gets_no_better():
    record = laptime.run(
        [*QUICK, "logger=tensorboard", "training.epochs=6", "training.early_stopping_patience=1", "optimizer.lr=1e-30"]
    )
    assert record["status"] == "completed"
    assert record["result"]["stop_reason"] == "early_stopping"
    run_dir = Path(record["config"]["run_dir"])
    num_epochs = len(read_epochs(run_dir))
    assert num_epochs < 6
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("test/accuracy")] == [num_epochs - 1]
    assert record["result"]["test_accuracy"] is not None


def test_time_limit_stops_within_an_epoch_and_keeps_whole_epochs_only():
    record = laptime.run([*QUICK, "training.epochs=100000", "training.time_limit_s=2"])
    assert record["status"] == "completed"
    assert record["result"]["stop_reason"] == "time_limit"
    assert_whole_epochs(Path(record["config"]["run_dir"]))
    assert record["result"]["test_accuracy"] is not None


def test_without_validation_nothing_is_validated():
    record = laptime.run([*QUICK, "dataset.val_fraction=0"])
    run_dir = Path(record["config"]["run_dir"])
    assert (record["dataset"]["num_train"], record["dataset"]["num_val"]) == (2000, 0)
    assert record["result"]["val_loss"] is None and record["result"]["val_accuracy"] is None
    assert read_epochs(run_dir)["val_loss"].isna().all()
    assert (run_dir / "checkpoints" / "last.ckpt").exists()
    assert not (run_dir / "checkpoints" / "best.ckpt").exists()


def test_one_epoch_has_no_warmup_and_is_counted():
    record = laptime.run([*QUICK, "training.epochs=1"])
    assert record["timing"]["warmup_epochs"] == 0
    assert record["timing"]["epoch_time_s"] is not None


def test_time_to_accuracy_counts_the_epochs_until_the_target():
    record = laptime.run([*QUICK, "measure.target_accuracy=0.5"])
    epochs = read_epochs(Path(record["config"]["run_dir"]))
    reached = int((epochs["val_accuracy"] >= 0.5).to_numpy().argmax())
    assert record["result"]["time_to_accuracy"] == pytest.approx(epochs["epoch_time_s"][: reached + 1].sum())
    assert laptime.run([*QUICK, "measure.target_accuracy=1"])["result"]["time_to_accuracy"] is None


def test_absent_mps_falls_back_with_one_warning(monkeypatch, capfd):
    monkeypatch.setenv("COLUMNS", "200")  # a processor's long name breaks no line then
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    record = laptime.run([*QUICK, "device=mps"])
    assert (record["device"]["requested"], record["device"]["used"]) == ("mps", "cpu")
    captured = capfd.readouterr()
    assert captured.err.count("device=mps") == 1
    assert "requested: mps, absent" in captured.out


def test_mps_operator_fallback_is_recorded(monkeypatch):
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    record = laptime.run([*QUICK, "training.epochs=1"])
    assert record["device"]["mps_fallback"] is True
    assert record["environment"]["variables"]["PYTORCH_ENABLE_MPS_FALLBACK"] == "1"


def test_environment_keeps_secrets_out(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    record = laptime.run([*QUICK, "training.epochs=1"])
    assert "hunter2" not in (Path(record["config"]["run_dir"]) / "run.json").read_text()


def test_hashes_tell_the_seed_and_the_work_apart():
    base, seed, work, shown = (
        laptime.run([*QUICK, "training.epochs=1", *more])
        for more in (
            [],
            ["seed=2"],
            ["optimizer.lr=0.002"],
            ["logger=none", "callbacks.progress_bar=null", "dataset.num_workers=7", "dataset.rotation_degrees=0"],
        )
    )
    assert base["config_hash"] != seed["config_hash"] and base["group_hash"] == seed["group_hash"]
    assert base["group_hash"] != work["group_hash"]
    assert base["config_hash"] == shown["config_hash"]


def test_logger_none_writes_no_events():
    record = laptime.run([*QUICK, "logger=none"])
    assert not list(Path(record["config"]["run_dir"]).rglob("events.*"))


def test_user_callback_joins_by_name():
    record = laptime.run(
        [*QUICK, "logger=tensorboard",
         "+callbacks.lr={_target_:pytorch_lightning.callbacks.LearningRateMonitor,logging_interval:epoch}"]
    )  # fmt: skip
    assert record["status"] == "completed"
    events = EventAccumulator(str(Path(record["config"]["run_dir"]) / "tensorboard"))
    events.Reload()
    assert any(tag.startswith("lr-") for tag in events.Tags()["scalars"])  # as Lightning's monitor names it


@pytest.mark.slow
def test_compiling_happens_outside_the_epochs_and_keeps_the_losses():
    plain, compiled = (laptime.run([*NO_DROPOUT, f"training.compile={value}"]) for value in ("false", "true"))
    assert compiled["timing"]["compile_s"] > 0
    assert losses(compiled) == [pytest.approx(each, rel=1e-3) for each in losses(plain)]
    # Were the 47 batches of the first epoch to include compiling, it would take longer than all of compiling did.
    first = read_epochs(Path(compiled["config"]["run_dir"]))["epoch_time_s"][0]
    assert first < compiled["timing"]["compile_s"]


@pytest.mark.slow
def test_a_sweep_trains_every_job(train, work_folder):
    done = train("-m", "seed=1,2", *QUICK, "logger=tensorboard")
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in sorted(work_folder.glob("multirun/*/*/*/run.json"))]
    assert [record["seed"] for record in records] == [1, 2]
    assert {record["status"] for record in records} == {"completed"}
    assert len({record["group_hash"] for record in records}) == 1
    runs = {path.parent.name for path in work_folder.glob("multirun/*/*/[01]/tensorboard/*/events.*")}
    assert runs == {"seed=1", "seed=2"}
