"""Does every combination of device, data set, model and strategy train, or say why it can't?

    python benchmarks/options.py                                         # everything
    python benchmarks/options.py --only model=vit strategy=ddp           # those that have all of these
    python benchmarks/options.py --limit 5000 --epochs 5

Each is `python train.py` in a process of its own, on the first images of the set. Fashion-MNIST's and CIFAR-10's are
MNIST's digits, written in their formats: the loading and the shape are real, the pictures aren't. Printed: a row per
combination with the training losses of the first and the last epoch and the test accuracy, or the line that refused it;
of a device that is absent one row.

Exit code 1: one that trained has learnt nothing (the last loss is not below the first, accuracy at most twice chance),
has an incomplete record, or failed instead of being refused.
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
# What is measured only where it was asked for, where there is an accelerator, several ranks, or a git checkout.
MAY_BE_MISSING = {
    "error", "experiment_name", "lap.num_batches", "device.memory_bytes", "dataset.limit", "result.time_to_accuracy",
    "timing.tokens_per_s", "timing.compile_s", "timing.straggler_delay",
    "resources.peak_device_memory_bytes", "resources.device_memory_bytes", "resources.driver_memory_bytes",
    "resources.energy_joules", "resources.energy_joules_per_1000_samples", "resources.energy_missing",
    "noise.on_battery", "breakdown.step_p99_s", "breakdown.step_p95_s", "strategy.backend", "bare_loop",
    "breakdown.communication_s", "breakdown.host_to_device_s", "communication", "contention", "git",
}  # fmt: skip


def options(group: str) -> list[str]:
    """The names of a group's options in conf/."""
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def write_data(folder: Path) -> None:
    """MNIST's first 5,000 training and 1,000 test digits as Fashion-MNIST's files, and with a border as CIFAR-10's."""
    with hydra_session() as hydra:
        config = resolve(without_hydra(compose(hydra, ["dataset.val_fraction=0"])))
    train, test, _ = build("dataset", config.dataset).load()
    cifar10 = folder / "cifar-10-batches-py"
    cifar10.mkdir()
    for number, name in enumerate([*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]):
        part, first = (test, 0) if name == "test_batch" else (train, 1000 * number)
        some = slice(first, first + 1000)
        images = F.pad(part.images[some], (2, 2, 2, 2)).expand(-1, 3, -1, -1).flatten(1).numpy()
        (cifar10 / name).write_bytes(pickle.dumps({"data": images, "labels": part.labels[some].tolist()}))
    for prefix, part, count in (("train", train, 5000), ("t10k", test, 1000)):
        # IDX: a magic number, the sizes as big-endian int32, the bytes.
        pixels = struct.pack(">IIII", 0x803, count, 28, 28) + part.images[:count].numpy().tobytes()
        labels = struct.pack(">II", 0x801, count) + part.labels[:count].numpy().astype(np.uint8).tobytes()
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(pixels))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def missing(record: dict[str, Any]) -> set[str]:
    """Keys of a completed run's record that have no value, of those that every run should have."""
    found = set()
    for section, content in RunRecord().to_json().items():
        if not isinstance(content, dict):
            found |= {section} if record[section] is None else set()
        else:
            found |= {f"{section}.{key}" for key in content if record[section][key] is None}
    return {key for key in found if key not in MAY_BE_MISSING and key.partition(".")[0] not in MAY_BE_MISSING}


def complaints(record: dict[str, Any], losses: list[float]) -> list[str]:
    """What is wrong with a completed run.

    Args:
        record: of the run, which measured neither breakdown nor peak.
        losses: in training, of its epochs.
    """
    left_out = {key for key in missing(record) if key.partition(".")[0] not in ("breakdown", "peak")}
    found = [f"{key} is missing" for key in sorted(left_out)]
    if not losses[-1] < losses[0]:
        found.append("the loss did not fall")
    if not record["result"]["test_accuracy"] > 2 / record["dataset"]["num_classes"]:
        found.append("accuracy at most twice chance")
    return found


def run(overrides: list[str]) -> tuple[int, str, dict[str, Any], list[float]]:
    """Exit code; the line on stderr that says what was wrong; of a completed run the record and the training losses of
    its epochs, of its first rank."""
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
    parser.add_argument("--limit", type=int, default=2000, help="images to train and validate with, and to test with")
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    few = [f"dataset.limit={arguments.limit}", f"training.epochs={arguments.epochs}", "training.batch_size=8"]
    few += ["measure.peak=false", "measure.breakdown=false", "device.fallback=error"]
    trained, refused, wrong, absent = 0, 0, 0, set[str]()
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder))
        print("| device | data set | model | strategy | loss | test accuracy |\n|---|---|---|---|---|---|", flush=True)
        for device, dataset, model, strategy in itertools.product(
            [each for each in options("device") if each not in ("auto", "accelerator")],
            options("dataset"),
            options("model"),
            STRATEGIES,
        ):
            asked = [f"device={device}", f"dataset={dataset}", f"model={model}", *strategy.split()]
            if device in absent or not set(arguments.only) <= set(asked):
                continue
            place = (
                [f"dataset.root={folder}", "dataset.verify=false"] if dataset in ("cifar10", "fashion_mnist") else []
            )
            code, line, record, losses = run([*asked, *few, *place])
            row = f"| {device} | {dataset} | {model} | {strategy} |"
            if code == 0:
                found, accuracy = complaints(record, losses), record["result"]["test_accuracy"]
                print(f"{row} {losses[0]:.3f} to {losses[-1]:.3f} | {accuracy:.1%} {'; '.join(found)} |", flush=True)
                trained, wrong = trained + 1, wrong + bool(found)
            else:
                print(f"{row} {'refused' if code == 2 else 'FAILED'}: {line} | |", flush=True)
                absent |= {device} if f"device={device}: absent" in line else set()
                refused, wrong = refused + (code == 2), wrong + (code != 2)
    print(f"\n{trained} trained, {refused} refused with the reason, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
