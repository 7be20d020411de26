"""What users do with runs: ask the doctor, resume elsewhere, evaluate, export, compare devices in a sweep."""

import importlib.util
import json
from pathlib import Path

import torch

import laptime
from selftest.part import Notes, Setting, Skipped
from selftest.trainings import SMALL, check_learned, train

# What a process takes of a CUDA device for itself, and torch doesn't count: its context and its libraries.
_CONTEXT_BYTES = 10**9


def doctor(setting: Setting, notes: Notes) -> None:
    from laptime.doctor.examine import examine

    report = examine(2.0, print)
    for finding in [*report["devices"], *report["backends"]]:
        what = " ".join(filter(None, (finding["name"], finding["precision"])))
        if finding["verdict"] == "not available":
            notes.skip(what, finding["detail"])
        else:
            notes.check(what, finding["verdict"] == "works", f"{finding['verdict']}: {finding['detail']}")
    noise = report["noise"]
    notes.remark("; ".join([f"quality {noise['grade']} of the machine now", *noise["reasons"]]))


def used_by_others(kind: str) -> tuple[float, int] | None:
    """Bytes of the device's memory that other processes use, and all of its bytes; None where that can't be told: of
    the CPU, of a Mac, of graphics built into the processor, whose memory the whole system uses."""
    from laptime.machine.device import describe

    if kind not in ("cuda", "xpu"):
        return None
    properties = torch.get_device_module(kind).get_device_properties(0)
    if getattr(properties, "is_integrated", False) or getattr(properties, "has_unified_memory", False):
        return None
    share, total, own = describe("auto", kind).memory_use()
    return max(0.0, share * total - own - _CONTEXT_BYTES), total


def is_busy(others: float, total: int) -> bool:
    """Whether other processes use so much of the device's memory that figures may be low and parts may fail."""
    return others > 0.1 * total


def memory_in_use(setting: Setting, notes: Notes) -> None:
    """How much of the device others use: a busy device explains what fails later."""
    try:
        used = used_by_others(setting.kind)
    except RuntimeError as error:
        raise Skipped(f"torch can't tell: {str(error).partition(chr(10))[0]}") from error
    if used is None:
        raise Skipped("it has no memory of its own, or torch can't tell who uses it")
    others, total = used
    notes.figure("device memory", total / 1e9, "GB")
    notes.figure("device memory that other processes use", others / 1e9, "GB")
    if is_busy(others, total):
        notes.remark(f"others use {others / total:.0%} of the device's memory: figures may be low, parts may fail")


def resume(setting: Setting, notes: Notes) -> None:
    """One epoch here, the next there, as if all had been trained on the CPU."""
    two = ["training.epochs=2", "model=cnn"]
    expected = train(setting, "whole", *SMALL, *two, device="cpu")
    for first, then in dict.fromkeys([(setting.kind, "cpu"), ("cpu", setting.kind)]):
        name = f"{first}-then-{then}"
        with notes.attempt(f"{first}, then {then}"):
            begun = train(setting, f"{name}-1", *SMALL, *two, "training.epochs=1", device=first)
            checkpoint = f"training.checkpoint='{begun['run_dir']}'"
            record = train(setting, f"{name}-2", *SMALL, *two, checkpoint, device=then)
            check_learned(notes, f"{first}, then {then}", record, expected)


def evaluate_and_export(setting: Setting, notes: Notes) -> None:
    """A run that was trained on the device is evaluated there and on the CPU, and exported."""
    from laptime.exporting.main import main as export

    typed = [*SMALL, "training.epochs=2", "dataset.num_test=300", "model=cnn"]
    folder = train(setting, "trained", *typed)["run_dir"]
    code = export([f"run={folder}", "format=torch_export", "latency.batch_sizes=[]"])
    notes.check("export.py format=torch_export", code == 0, f"exit code {code}")
    from laptime.evaluation.main import main as evaluate

    for device in dict.fromkeys((setting.kind, "cpu")):
        code = evaluate([f"run={folder}", f"device={device}", "latency.batch_sizes=[1]", "latency.num_calls=20"])
        what = f"evaluate.py device={device}"
        if code != 0:
            notes.check(what, False, f"exit code {code}")
            continue
        evaluation = json.loads((Path(folder) / "evaluation/evaluation.json").read_text())
        found, recorded = evaluation["result"]["test_accuracy"], evaluation["recorded"]["test_accuracy"]
        # Between devices rounding may turn an image or two whose classes are about equally likely.
        allowed = 0.0 if device == setting.kind else 2 / 300
        notes.check(what, abs(found - recorded) <= allowed + 1e-9, f"accuracy {found:.2%}, in the test {recorded:.2%}")


def device_benchmark(setting: Setting, notes: Notes) -> None:
    """experiment=device_benchmark in small: its answer is a comparison of the CPU with the accelerator."""
    from laptime.cli import main

    has_torchvision = importlib.util.find_spec("torchvision") is not None  # it reads MNIST's files
    images = ["dataset.limit=3000"] if has_torchvision else ["dataset=synthetic", "dataset.num_train=3000"]
    small = [*images, "training.epochs=3", "training.batch_size=256", "seed=1,2", "logger=none"]
    typed = ["experiment=device_benchmark", *small, "measure.breakdown=false", "~hydra.callbacks.report"]
    code: object = 0
    try:
        main([*typed, "hydra.sweep.dir=sweep"])
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
