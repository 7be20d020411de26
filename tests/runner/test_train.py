"""The results of a training: its losses, its record, its files, and its terminal output."""

import gzip
import json
import logging
import multiprocessing
import pickle
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.support import processes
from tests.support.records import new_record
from tests.support.settings import NO_REPORT, QUICK, TINY

import laptime
from laptime.config.compose import compose as compose_run
from laptime.config.compose import hydra_session, resolve, without_hydra
from laptime.config.composition import config_dir
from laptime.config.identity import hashed_config
from laptime.errors import UserError
from laptime.exporting.main import main as export
from laptime.record.epochs import EPOCH_COLUMNS
from laptime.record.files import read_epochs, read_record
from laptime.record.hashes import config_hashes

SHORT = (*TINY, "training.epochs=2")
NO_DROPOUT = (*SHORT, "model.dropout=0")
# A small subset that is large enough to learn from.
FEW_OF_MNIST = (*QUICK, "dataset.limit=2000", "training.epochs=2", "training.batch_size=32")


def losses(run: dict | Path) -> list[tuple[float, float]]:
    epochs = read_epochs(run if isinstance(run, Path) else Path(run["run_dir"]))
    return list(zip(epochs["train_loss"], epochs["val_loss"], strict=True))


@pytest.fixture(scope="module")
def default_run(tmp_path_factory, cache_folder):
    """A run with all defaults on a sixth of MNIST, shared by the tests that inspect its results."""
    folder = tmp_path_factory.mktemp("default")
    done = processes.run("dataset.limit=10000", cwd=folder, environment={"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    (record_path,) = folder.glob("outputs/*/*/run.json")
    return done, record_path.parent, json.loads(record_path.read_text())


@pytest.mark.soak
def test_default_run_learns_mnist(train, the_run):
    assert train().returncode == 0
    _, record = the_run()
    assert record["status"] == "completed"
    assert (record["dataset"]["num_train"], record["dataset"]["num_test"]) == (48_000, 10_000)
    assert record["dataset"]["limit"] is None
    assert record["result"]["test_accuracy"] >= 0.975


def test_default_run_on_part_of_mnist_learns(default_run):
    _, _, record = default_run
    assert record["status"] == "completed"
    assert (record["dataset"]["num_train"], record["dataset"]["num_test"]) == (8_000, 10_000)
    assert record["result"]["test_accuracy"] >= 0.9  # more than a linear model reaches


def test_record_has_every_key_of_the_schema(default_run):
    _, _, record = default_run
    schema = new_record()
    assert record.keys() == schema.keys()
    for name, section in schema.items():
        if isinstance(section, dict):
            assert record[name].keys() == section.keys(), name


def test_every_measured_section_of_the_record_is_complete(default_run):
    _, run_dir, record = default_run
    for section, are_null in {
        "device": (),
        "dataset": ("vocab_size",),
        "model": (),
        "strategy": ("backend",),
        "batch": (),
        "timing": ("tokens_per_s", "compile_s", "straggler_delay"),
        "result": ("time_to_accuracy", "time_to_score"),
        "resources": (
            "peak_device_memory_bytes", "device_memory_bytes", "driver_memory_bytes",
            "energy_joules", "energy_joules_per_1000_samples",
        ),
        "breakdown": ("host_to_device_s", "communication_s"),
        "peak": (),
    }.items():  # fmt: skip
        null = {key for key, value in record[section].items() if value is None}
        assert null == set(are_null), section
    assert record["error"] is None
    assert record["environment"]["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert record["run_dir"] == str(run_dir)
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
    assert record["timing"]["samples_per_s"] == pytest.approx(8_000 / median)
    assert record["timing"]["tokens_per_s"] is None and epochs["num_tokens"].isna().all()
    assert record["timing"]["steps_per_s"] == pytest.approx(125 / median)
    assert (epochs["data_wait_s"] < epochs["epoch_time_s"]).all()


def test_terminal_shows_the_measurements(default_run):
    done, run_dir, record = default_run
    assert f"{record['model']['num_parameters']:,} parameters" in done.stdout
    assert f"{record['result']['test_accuracy']:.2%}" in done.stdout
    assert f"tensorboard --logdir {run_dir.relative_to(run_dir.parents[2])}" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr, "control characters without a terminal"
    assert done.stderr.count("epoch ") == 5
    log = (run_dir / "train.log").read_text()
    assert "[rank 0][INFO]" in log and "epoch 5/5" in log


def test_every_epoch_records_interference(default_run):
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
    record = laptime.run([*SHORT, "optimizer=sgd", "dataset.limit=100"])
    run_dir = Path(record["run_dir"])
    assert json.loads((run_dir / "run.json").read_text())["result"] == json.loads(json.dumps(record["result"]))
    assert record["config"]["optimizer"]["_target_"] == "torch.optim.SGD"
    assert record["dataset"]["limit"] == 100


def test_run_from_python_does_not_change_the_callers_hydra_and_logging():
    handlers = logging.getLogger().handlers[:]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        laptime.run([*TINY, "training.epochs=1"])
        assert GlobalHydra.instance().is_initialized()
        assert compose("config").training.epochs == 5
    assert logging.getLogger().handlers == handlers


@pytest.mark.soak
def test_cnn_learns_mnist():
    record = laptime.run(["model=cnn", "dataset.limit=10000", "training.epochs=2"])
    assert record["result"]["test_accuracy"] > 0.93


@pytest.mark.parametrize("seed", [0, 3])
def test_same_seed_gives_the_same_losses_bit_for_bit_and_another_does_not(seed, trained):
    first, again = (laptime.run([*SHORT, f"seed={seed}"]) for _ in range(2))
    assert first["seed"] == seed
    assert losses(first) == losses(again)
    assert losses(first) != losses(trained(*SHORT)), "as with seed=1"


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_steps_per_execution_does_not_change_the_training(precision):
    # With one autocast context around several steps, bf16 would train on stale copies of the weights.
    one, many = (
        losses(laptime.run([*SHORT, f"training.precision={precision}", f"training.steps_per_execution={steps}"]))
        for steps in (1, 5)  # an epoch has 8
    )
    assert one == many


def test_microbatches_give_the_gradient_of_the_whole_batch(trained):
    whole, parts = (losses(trained(*NO_DROPOUT, f"training.num_microbatches={parts}")) for parts in (1, 4))
    assert parts == [pytest.approx(value, rel=1e-4) for value in whole]
    assert parts != whole, "nothing was accumulated"


def test_pipelines_give_the_same_losses(trained):
    workers = losses(laptime.run([*SHORT, "dataset.pipeline=workers", "dataset.num_workers=2"]))
    assert workers == [pytest.approx(value, rel=1e-4) for value in losses(trained(*SHORT))]


def test_bf16_trains_close_to_float32():
    exact, mixed = (
        laptime.run([*NO_DROPOUT, f"training.precision={precision}"]) for precision in ("32-true", "bf16-mixed")
    )
    assert mixed["device"]["precision"] == "bf16-mixed"
    assert losses(mixed) != losses(exact)
    # bfloat16 has 8 bits: each of the two products of a step is right within 2**-8 of the largest term.
    assert mixed["result"]["val_loss"] == pytest.approx(exact["result"]["val_loss"], rel=16 * 2**-8)


def test_clipping_keeps_the_gradient_small():
    free, clipped = (
        losses(laptime.run([*SHORT, "optimizer=sgd", f"training.gradient_clip_norm={norm}"]))
        for norm in ("null", "1e-6")
    )
    # 16 steps of at most lr * 1e-6 / (1 - momentum): the weights don't move.
    assert clipped[1][1] == pytest.approx(clipped[0][1], rel=1e-4)
    assert free[1][1] < 0.99 * free[0][1]


def learnable(count: int, shape: tuple[int, ...], generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Noisy uint8 images with a bright stripe whose height tells their class, and the labels."""
    labels = generator.integers(0, 10, count)
    images = generator.integers(0, 50, (count, *shape))
    for image, label in zip(images, labels, strict=True):
        image[..., 2 * label + 4 : 2 * label + 6, :] = 220
    return images.astype(np.uint8), labels.astype(np.uint8)


def write_fashion_mnist(folder: Path, seed: int = 0) -> None:
    """600 training and 100 test images, as IDX: a magic number, the sizes as big-endian int32, the bytes."""
    folder.mkdir(exist_ok=True)
    for prefix, count in (("train", 600), ("t10k", 100)):
        images, labels = learnable(count, (28, 28), np.random.default_rng(count + seed))
        header = struct.pack(">IIII", 0x803, count, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes(), 1))
        header = struct.pack(">II", 0x801, count)
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + labels.tobytes()))


@pytest.mark.soak
def test_hashes_distinguish_data_sets_of_the_same_name(work_folder):
    write_fashion_mnist(work_folder / "a", 1)
    write_fashion_mnist(work_folder / "b", 2)
    (work_folder / "c").symlink_to("a")
    overrides = [*QUICK, "dataset=fashion_mnist", "dataset.verify=false", "dataset.limit=200"]
    laptime.run([*overrides, "dataset.root=a", "training.epochs=1", "hydra.run.dir=first"])
    on = [*overrides, "training.checkpoint=first", "training.epochs=2"]
    with pytest.raises(UserError, match=r"^training\.checkpoint=first.*checksum"):
        laptime.run([*on, "dataset.root=b"])
    assert laptime.run([*on, "dataset.root=c"])["status"] == "completed"
    for root, is_other in (("a", False), ("b", True)):
        assert export(["run=first", "format=torch_export", "latency.batch_sizes=[]", f"dataset.root={root}"]) == 0
        assert json.loads(Path("first/export/export.json").read_text())["has_other_data"] is is_other


def test_trains_on_fashion_mnist_files(work_folder):
    write_fashion_mnist(work_folder)
    record = laptime.run(
        [*QUICK, "dataset=fashion_mnist", "dataset.root=.", "dataset.verify=false", "training.epochs=8",
         "training.batch_size=16"]
    )  # fmt: skip
    dataset = record["dataset"]
    assert dataset["name"] == "fashion_mnist"
    assert (dataset["num_train"], dataset["num_val"], dataset["num_test"]) == (480, 120, 100)
    assert record["result"]["test_accuracy"] > 0.6


@pytest.mark.skipif(not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="Debian's package is not installed")
def test_trains_on_the_real_fashion_mnist():
    record = laptime.run([*QUICK, "dataset=fashion_mnist", "dataset.limit=5000", "training.epochs=3"])
    assert record["result"]["test_accuracy"] > 0.7


@pytest.mark.parametrize("pipeline", ["memory", "workers"])
def test_cnn_trains_on_cifar10_files_with_augmentation(pipeline, work_folder):
    folder = work_folder / "cifar-10-batches-py"
    folder.mkdir()
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        images, labels = learnable(100, (3, 32, 32), np.random.default_rng(number))
        batch = {"data": images.reshape(100, -1), "labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(batch))
    record = laptime.run(
        [*QUICK, "experiment=cnn_cifar10", "dataset.root=.", "dataset.verify=false", f"dataset.pipeline={pipeline}",
         "dataset.num_workers=2", "training.epochs=4", "training.batch_size=16"]
    )  # fmt: skip
    assert record["model"]["num_parameters"] == 1_276_234
    assert record["config"]["dataset"]["horizontal_flip"] is True
    assert (record["dataset"]["num_train"], record["dataset"]["num_test"]) == (400, 100)
    assert record["result"]["test_accuracy"] > 0.3
    assert not multiprocessing.active_children(), "data workers were left behind"


def test_an_epoch_that_a_callback_ends_early_is_not_recorded():
    stop = "+callbacks.stop={_target_:stop_within_epoch.StopWithinEpoch,epoch:2,batch:3}"
    record = laptime.run([*TINY, "training.epochs=5", stop])
    run_dir = Path(record["run_dir"])
    epochs = read_epochs(run_dir)
    assert list(epochs["epoch"]) == [0, 1]
    assert (epochs["num_samples"] == 240).all() and (epochs["epoch_time_s"] > 0).all()
    assert "epoch 3 was cut short and is not recorded" in (run_dir / "train.log").read_text()


def test_time_limit_stops_within_an_epoch():
    # No machine takes 20,000 steps in half a second.
    long = ["dataset.shape=[1,2,2]", "dataset.num_train=30000", "training.batch_size=1", "model.hidden_sizes=[4]"]
    fails = "+callbacks.fails={_target_:stop_within_epoch.FailAtBatch,batch:20000}"
    record = laptime.run([*TINY, *long, fails, "training.time_limit_s=0.5"])
    assert record["status"] == "completed"
    assert record["result"]["stop_reason"] == "time_limit"
    run_dir = Path(record["run_dir"])
    assert read_epochs(run_dir).empty
    assert "the incomplete epoch is not recorded" in (run_dir / "train.log").read_text()
    assert record["result"]["test_accuracy"] is not None


def test_time_limit_keeps_whole_epochs_only():
    record = laptime.run([*TINY, "training.epochs=100000", "training.time_limit_s=1"])
    assert record["result"]["stop_reason"] == "time_limit"
    run_dir = Path(record["run_dir"])
    epochs = read_epochs(run_dir)
    num_whole = len(re.findall(r"epoch \d+/100000  ", (run_dir / "train.log").read_text()))
    assert list(epochs["epoch"]) == list(range(num_whole))
    assert (epochs["num_samples"] == 240).all() and (epochs["epoch_time_s"] > 0).all()


def test_nan_loss_in_the_last_step_fails_the_run():
    with pytest.raises(laptime.TrainingFailed, match="validation loss is"):
        laptime.run([*TINY, "training.epochs=1", "training.batch_size=240", "optimizer.lr=1e30"])


@pytest.mark.parametrize("option", ["adam", "adamw", "sgd"])
def test_every_optimizer_learns(option):
    record = laptime.run([*FEW_OF_MNIST, f"optimizer={option}", "scheduler=none"])
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
    record = laptime.run([*TINY, "training.epochs=3", "optimizer.lr=0.01", *overrides])
    assert list(read_epochs(Path(record["run_dir"]))["lr"]) == pytest.approx(rates)


def test_plateau_scheduler_lowers_the_rate_when_the_validation_loss_does_not_improve():
    # The loss falls, but never by the 100 that the scheduler waits for.
    falls = ["+scheduler.threshold=100.0", "+scheduler.threshold_mode=abs"]
    plateau = ["scheduler=plateau", "scheduler.patience=0", *falls, "optimizer.lr=0.001"]
    record = laptime.run([*TINY, "training.epochs=4", *plateau])
    rates = list(read_epochs(Path(record["run_dir"]))["lr"])
    assert rates[0] == 0.001 and rates[-1] < 0.001


def test_early_stopping_ends_a_run_that_does_not_improve():
    record = laptime.run(
        [*TINY, "logger=tensorboard", "training.epochs=6", "training.early_stopping_patience=1", "optimizer.lr=1e-30"]
    )
    assert record["status"] == "completed"
    assert record["result"]["stop_reason"] == "early_stopping"
    run_dir = Path(record["run_dir"])
    num_epochs = len(read_epochs(run_dir))
    assert num_epochs < 6
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("test/accuracy")] == [num_epochs - 1]
    assert record["result"]["test_accuracy"] is not None


def test_early_stopping_does_not_end_a_run_that_improves():
    overrides = ["training.epochs=4", "training.early_stopping_patience=1", "model.dropout=0"]
    record = laptime.run([*TINY, *overrides])
    epochs = read_epochs(Path(record["run_dir"]))
    assert epochs["val_loss"].is_monotonic_decreasing, list(epochs["val_loss"])
    assert record["result"]["stop_reason"] == "epochs" and len(epochs) == 4


def test_without_validation_nothing_is_validated():
    record = laptime.run([*SHORT, "dataset.val_fraction=0"])
    run_dir = Path(record["run_dir"])
    assert (record["dataset"]["num_train"], record["dataset"]["num_val"]) == (300, 0)
    assert record["result"]["val_loss"] is None and record["result"]["val_accuracy"] is None
    assert read_epochs(run_dir)["val_loss"].isna().all()
    assert (run_dir / "checkpoints" / "last.ckpt").exists()
    assert not (run_dir / "checkpoints" / "best.ckpt").exists()


def test_one_epoch_has_no_warmup_and_is_counted(trained):
    record = read_record(trained(*TINY, "training.epochs=1"))
    assert record["timing"]["warmup_epochs"] == 0
    assert record["timing"]["epoch_time_s"] is not None


def test_time_to_accuracy_counts_the_epochs_until_the_target(trained):
    settings = (*TINY, "training.epochs=4")
    target = read_epochs(trained(*settings))["val_accuracy"][2]
    record = laptime.run([*settings, f"measure.target_accuracy={target}"])
    epochs = read_epochs(Path(record["run_dir"]))
    reached = int((epochs["val_accuracy"] >= target).to_numpy().argmax())
    assert record["result"]["time_to_accuracy"] == pytest.approx(epochs["epoch_time_s"][: reached + 1].sum())
    missed = laptime.run([*SHORT, "optimizer.lr=1e-9", "measure.target_accuracy=0.9"])
    assert missed["result"]["time_to_accuracy"] is None


def test_absent_mps_falls_back_with_one_warning(monkeypatch, capfd):
    monkeypatch.setenv("COLUMNS", "200")  # so that a long processor name does not wrap
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    record = laptime.run([*SHORT, "device=mps"])
    assert (record["device"]["requested"], record["device"]["used"]) == ("mps", "cpu")
    captured = capfd.readouterr()
    assert captured.err.count("device=mps") == 1
    assert "requested: mps, not available" in captured.out


def test_environment_has_mps_operator_fallback_and_no_secrets(train, the_run):
    done = train(*SHORT, PYTORCH_ENABLE_MPS_FALLBACK="1", AWS_SECRET_ACCESS_KEY="hunter2")
    assert done.returncode == 0, done.stderr
    run_dir, record = the_run()
    assert record["device"]["mps_fallback"] is True
    assert record["environment"]["variables"]["PYTORCH_ENABLE_MPS_FALLBACK"] == "1"
    assert "hunter2" not in (run_dir / "run.json").read_text()


def test_hashes_distinguish_seed_and_settings(trained):
    others = ["logger=tensorboard", "callbacks.progress_bar.refresh_s=7", "dataset.num_workers=7",
              "dataset.rotation_degrees=0"]  # fmt: skip
    with hydra_session() as hydra:
        base, seed, work, shown = (
            config_hashes(hashed_config(resolve(without_hydra(compose_run(hydra, [*overrides]))), "cpu", 1, 1))
            for overrides in (
                [*SHORT],
                [*SHORT, "seed=2"],
                [*SHORT, "optimizer.lr=0.002"],
                [*(override for override in SHORT if not override.startswith("callbacks")), *others],
            )
        )
    assert base[0] != seed[0] and base[1] == seed[1]
    assert base[1] != work[1]
    assert base == shown
    record = read_record(trained(*SHORT))
    assert (record["config_hash"], record["group_hash"]) == base


def test_logger_none_writes_no_events(trained):
    assert not list(trained(*SHORT).rglob("events.*"))


def test_user_callback_joins_by_name():
    monitor = "+callbacks.lr={_target_:pytorch_lightning.callbacks.LearningRateMonitor,logging_interval:epoch}"
    record = laptime.run([*SHORT, "logger=tensorboard", monitor])
    assert record["status"] == "completed"
    events = EventAccumulator(str(Path(record["run_dir"]) / "tensorboard"))
    events.Reload()
    assert any(tag.startswith("lr-") for tag in events.Tags()["scalars"])  # the name that Lightning's monitor gives


@pytest.mark.soak
def test_compiling_happens_outside_the_epochs_and_keeps_the_losses(trained, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))  # an empty cache
    plain, compiled = (trained(*NO_DROPOUT, f"training.compile={value}") for value in ("false", "true"))
    compile_s = read_record(compiled)["timing"]["compile_s"]
    assert compile_s > 0
    assert losses(compiled) == [pytest.approx(epoch_loss, rel=1e-3) for epoch_loss in losses(plain)]
    # If the first epoch included compilation, it would take longer than the recorded compilation.
    assert read_epochs(compiled)["epoch_time_s"][0] < compile_s


def test_a_sweep_trains_every_job(train, work_folder):
    done = train("-m", "seed=1,2", *SHORT, "logger=tensorboard", NO_REPORT)
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in sorted(work_folder.glob("multirun/*/*/*/run.json"))]
    assert [record["seed"] for record in records] == [1, 2]
    assert {record["status"] for record in records} == {"completed"}
    assert len({record["group_hash"] for record in records}) == 1
    runs = {path.parent.name for path in work_folder.glob("multirun/*/*/[01]/tensorboard/*/events.*")}
    assert runs == {"seed=1", "seed=2"}
