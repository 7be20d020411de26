"""Use runs as users do: examine the machine, resume on another device, evaluate, export, compare devices in a sweep."""

import importlib.util
import json
from pathlib import Path

import torch

import laptime
from selftest.part import Notes, Setting, Skipped
from selftest.trainings import SMALL, check_learned, train

# Device memory of a process that torch doesn't count: the CUDA context and libraries.
_CONTEXT_BYTES = 10**9


def doctor(setting: Setting, notes: Notes) -> None:
    from laptime.doctor.examine import examine

    report = examine(2.0, print)
    for finding in [*report["devices"], *report["backends"]]:
        title = " ".join(filter(None, (finding["name"], finding["precision"])))
        if finding["verdict"] == "not available":
            notes.skip(title, finding["detail"])
        else:
            notes.check(title, finding["verdict"] == "works", f"{finding['verdict']}: {finding['detail']}")
    noise = report["noise"]
    notes.remark("; ".join([f"current quality of the machine: {noise['grade']}", *noise["reasons"]]))


def used_by_others(kind: str) -> tuple[float, int] | None:
    """Bytes of the device's memory that other processes use, and its total bytes.

    None for devices that use the system's memory: the CPU, a Mac's GPU and GPUs that are integrated in the processor.
    """
    from laptime.machine.device import describe

    if kind not in ("cuda", "xpu"):
        return None
    properties = torch.get_device_module(kind).get_device_properties(0)
    if getattr(properties, "is_integrated", False) or getattr(properties, "has_unified_memory", False):
        return None
    used_fraction, total_bytes, process_bytes = describe("auto", kind).memory_use()
    return max(0.0, used_fraction * total_bytes - process_bytes - _CONTEXT_BYTES), total_bytes


def is_busy(other_bytes: float, total_bytes: int) -> bool:
    """Whether other processes use so much of the device's memory that figures may be low and parts may fail."""
    return other_bytes > 0.1 * total_bytes


def memory_in_use(setting: Setting, notes: Notes) -> None:
    """Note how much of the device's memory other processes use. A busy device explains later failures."""
    try:
        used = used_by_others(setting.kind)
    except RuntimeError as error:
        raise Skipped(f"torch can't read the memory in use: {str(error).partition(chr(10))[0]}") from error
    if used is None:
        raise Skipped("the device has no memory of its own, or torch can't read how much is in use")
    other_bytes, total_bytes = used
    notes.figure("device memory", total_bytes / 1e9, "GB")
    notes.figure("device memory that other processes use", other_bytes / 1e9, "GB")
    if is_busy(other_bytes, total_bytes):
        percent = f"{other_bytes / total_bytes:.0%}"
        notes.remark(f"other processes use {percent} of the device's memory: figures may be low, parts may fail")


def resume(setting: Setting, notes: Notes) -> None:
    """Check that a run that continues on another device learns the same as one that stays on the CPU."""
    overrides = [*SMALL, "training.epochs=2", "model=cnn"]
    expected = train(setting, "whole", *overrides, device="cpu")
    for first, second in dict.fromkeys([(setting.kind, "cpu"), ("cpu", setting.kind)]):
        name = f"{first}-then-{second}"
        with notes.attempt(f"{first}, then {second}"):
            interrupted = train(setting, f"{name}-1", *overrides, "training.epochs=1", device=first)
            checkpoint = f"training.checkpoint='{interrupted['run_dir']}'"
            record = train(setting, f"{name}-2", *overrides, checkpoint, device=second)
            check_learned(notes, f"{first}, then {second}", record, expected)


def evaluate_and_export(setting: Setting, notes: Notes) -> None:
    """Evaluate a run that was trained on the device, on the device and on the CPU, and export it."""
    from laptime.exporting.main import main as export

    overrides = [*SMALL, "training.epochs=2", "dataset.num_test=300", "model=cnn"]
    folder = train(setting, "trained", *overrides)["run_dir"]
    code = export([f"run={folder}", "format=torch_export", "latency.batch_sizes=[]"])
    notes.check("export.py format=torch_export", code == 0, f"exit code {code}")
    from laptime.evaluation.main import main as evaluate

    for device in dict.fromkeys((setting.kind, "cpu")):
        code = evaluate([f"run={folder}", f"device={device}", "latency.batch_sizes=[1]", "latency.num_calls=20"])
        command = f"evaluate.py device={device}"
        if code != 0:
            notes.check(command, False, f"exit code {code}")
            continue
        evaluation = json.loads((Path(folder) / "evaluation/evaluation.json").read_text())
        accuracy, recorded = evaluation["result"]["test_accuracy"], evaluation["recorded"]["test_accuracy"]
        # Devices round differently, which can change the class of an image or two.
        tolerance = 0.0 if device == setting.kind else 2 / 300
        is_equal = abs(accuracy - recorded) <= tolerance + 1e-9
        notes.check(command, is_equal, f"accuracy {accuracy:.2%}, in the run's test {recorded:.2%}")


def device_benchmark(setting: Setting, notes: Notes) -> None:
    """Compare the CPU with the accelerator by a small experiment=device_benchmark."""
    from laptime.cli import main

    has_torchvision = importlib.util.find_spec("torchvision") is not None  # it reads MNIST's files
    images = ["dataset.limit=3000"] if has_torchvision else ["dataset=synthetic", "dataset.num_train=3000"]
    small = [*images, "training.epochs=3", "training.batch_size=256", "seed=1,2", "logger=none"]
    overrides = ["experiment=device_benchmark", *small, "measure.breakdown=false", "~hydra.callbacks.report"]
    code: object = 0
    try:
        main([*overrides, "hydra.sweep.dir=sweep"])
    except SystemExit as end:
        code = end.code or 0
    notes.check("experiment=device_benchmark", code == 0, f"exit code {code}")
    if code != 0:
        return
    runs = laptime.load("sweep").runs
    medians = runs.groupby("device")["samples_per_s"].median()
    for device, samples_per_s in medians.items():
        notes.figure(f"CNN on {device}", samples_per_s, "samples/s")
    if setting.kind in medians and setting.kind != "cpu":
        notes.figure(f"{setting.kind} / cpu", medians[setting.kind] / medians["cpu"], "")
    notes.check(
        "both devices trained", setting.kind in medians and "cpu" in medians, ", ".join(map(str, medians.index))
    )
