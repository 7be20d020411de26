"""Train every combination of device, data set, model and strategy, or check that it is refused with a reason.

    python benchmarks/options.py                                         # all combinations
    python benchmarks/options.py --only model=vit strategy=ddp           # combinations with all of these values
    python benchmarks/options.py --limit 5000 --epochs 5

Each combination is a process, `python train.py`, on the first images of the data set. For Fashion-MNIST and CIFAR-10
the script writes MNIST's digits in their formats: loading and shapes are real, the pictures aren't. Printed: a row per
combination with the training losses of the first and the last epoch and the test accuracy, or with the message that
refused it. A missing device has one row.

Exit code 1: a combination learned nothing (the last loss is not below the first, or the accuracy is at most twice
chance), has an incomplete record, or failed without being refused.
"""

import argparse
import gzip
import itertools
import pickle
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F

from laptime.config.compose import compose, hydra_session, resolve, without_hydra
from laptime.config.composition import config_dir
from laptime.config.targets import build
from laptime.record.files import read_epochs, read_record
from laptime.record.run_record import RunRecord

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
STRATEGIES = ("strategy=single", "strategy=ddp strategy.wrap_single_rank=true", "strategy=ddp strategy.world_size=2")
# Keys that are set only on request, or with an accelerator, several ranks or a git checkout.
MAY_BE_MISSING = {
    "error", "experiment_name", "lap.num_batches", "device.memory_bytes", "dataset.limit", "result.time_to_accuracy",
    "timing.tokens_per_s", "timing.compile_s", "timing.straggler_delay",
    "resources.peak_device_memory_bytes", "resources.device_memory_bytes", "resources.driver_memory_bytes",
    "resources.energy_joules", "resources.energy_joules_per_1000_samples", "resources.energy_missing",
    "noise.on_battery", "breakdown.step_p99_s", "breakdown.step_p95_s", "strategy.backend", "bare_loop",
    "breakdown.communication_s", "breakdown.host_to_device_s", "communication", "contention", "git",
}  # fmt: skip


def options(group: str) -> list[str]:
    """The names of a group's options in conf/, sorted."""
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def write_data(folder: Path) -> None:
    """Write MNIST's first 5,000 training and 1,000 test digits as Fashion-MNIST's files and, padded, as CIFAR-10's."""
    with hydra_session() as hydra:
        config = resolve(without_hydra(compose(hydra, ["dataset.val_fraction=0"])))
    train, test, _ = build("dataset", config.dataset).load()
    cifar10 = folder / "cifar-10-batches-py"
    cifar10.mkdir()
    for number, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        digits, first = (test, 0) if name == "test_batch" else (train, 1000 * number)
        batch = slice(first, first + 1000)
        images = F.pad(digits.images[batch], (2, 2, 2, 2)).expand(-1, 3, -1, -1).flatten(1).numpy()
        (cifar10 / name).write_bytes(pickle.dumps({"data": images, "labels": digits.labels[batch].tolist()}))
    for prefix, digits, count in (("train", train, 5000), ("t10k", test, 1000)):
        # IDX: a magic number, the sizes as big-endian int32, the bytes.
        pixels = struct.pack(">IIII", 0x803, count, 28, 28) + digits.images[:count].numpy().tobytes()
        labels = struct.pack(">II", 0x801, count) + digits.labels[:count].numpy().astype(np.uint8).tobytes()
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(pixels))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def missing(record: dict[str, Any]) -> set[str]:
    """Keys without a value in a completed run's record, among those that every run should have."""
    keys = set()
    for section, content in RunRecord().to_json().items():
        if not isinstance(content, dict):
            keys |= {section} if record[section] is None else set()
        else:
            keys |= {f"{section}.{key}" for key in content if record[section][key] is None}
    return {key for key in keys if key not in MAY_BE_MISSING and key.partition(".")[0] not in MAY_BE_MISSING}


def complaints(record: dict[str, Any], losses: list[float]) -> list[str]:
    """Describe what is wrong with a completed run.

    Args:
        record: the run's record, without breakdown and peak.
        losses: training loss of each epoch.
    """
    missing_keys = {key for key in missing(record) if key.partition(".")[0] not in ("breakdown", "peak")}
    problems = [f"{key} is missing" for key in sorted(missing_keys)]
    if not losses[-1] < losses[0]:
        problems.append("the loss did not fall")
    if not record["result"]["test_accuracy"] > 2 / record["dataset"]["num_classes"]:
        problems.append("accuracy at most twice chance")
    return problems


def run(overrides: list[str]) -> tuple[int, str, dict[str, Any], list[float]]:
    """Run train.py once.

    Returns:
        The exit code; the error message, or an empty text; the record and rank 0's training loss of each epoch, both
        empty unless the run completed.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, str(TRAIN), *overrides, "logger=csv", f"hydra.run.dir={folder}/run"],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode == 0:
            path = Path(folder) / "run"
            return 0, "", read_record(path), read_epochs(path).query("rank == 0")["train_loss"].tolist()
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return done.returncode, next((line for line in lines if line.startswith("error:")), lines[-1]), {}, []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--limit", type=int, default=2000, help="number of training and validation images, and of test images"
    )
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    short = [f"dataset.limit={arguments.limit}", f"training.epochs={arguments.epochs}", "training.batch_size=8"]
    short += ["measure.peak=false", "measure.breakdown=false", "device.fallback=error"]
    trained, refused, wrong, absent = 0, 0, 0, set[str]()
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder))
        print("| device | data set | model | strategy | loss | test accuracy |\n|---|---|---|---|---|---|", flush=True)
        for device, dataset, model, strategy in itertools.product(
            [device for device in options("device") if device not in ("auto", "accelerator")],
            options("dataset"),
            options("model"),
            STRATEGIES,
        ):
            combination = [f"device={device}", f"dataset={dataset}", f"model={model}", *strategy.split()]
            if device in absent or not set(arguments.only) <= set(combination):
                continue
            files = (
                [f"dataset.root={folder}", "dataset.verify=false"] if dataset in ("cifar10", "fashion_mnist") else []
            )
            code, line, record, losses = run([*combination, *short, *files])
            row = f"| {device} | {dataset} | {model} | {strategy} |"
            if code == 0:
                problems, accuracy = complaints(record, losses), record["result"]["test_accuracy"]
                print(f"{row} {losses[0]:.3f} to {losses[-1]:.3f} | {accuracy:.1%} {'; '.join(problems)} |", flush=True)
                trained, wrong = trained + 1, wrong + bool(problems)
            else:
                print(f"{row} {'refused' if code == 2 else 'FAILED'}: {line} | |", flush=True)
                absent |= {device} if f"device={device}: absent" in line else set()
                refused, wrong = refused + (code == 2), wrong + (code != 2)
    print(f"\n{trained} trained, {refused} refused with a reason, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
