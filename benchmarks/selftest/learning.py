"""Does the device learn what the CPU learns? Every model, optimizer and precision, and torch.compile."""

import importlib.util
import shutil
from typing import Any

from laptime.compose import config_dir
from laptime.errors import TrainingFailed, UserError
from laptime.peak import _DTYPES
from options import options
from selftest.part import Notes, Setting
from selftest.trainings import (
    HALF_TOLERANCE,
    HALF_WEIGHTS_TOLERANCE,
    SMALL,
    TOLERANCE,
    WEIGHTS_TOLERANCE,
    compared,
    differs,
    loss_of,
    train,
    weights_apart,
)  # fmt: skip

_PACKAGES = {"model=timm": "timm", "model=torchvision": "torchvision"}


def models(setting: Setting, notes: Notes) -> None:
    """Without dropout: random numbers differ between devices."""
    for model in options("model"):
        dropout = ["model.dropout=0"] if "\ndropout:" in (config_dir() / f"model/{model}.yaml").read_text() else []
        _compare(setting, notes, f"model={model}", *dropout)


def optimizers(setting: Setting, notes: Notes) -> None:
    for optimizer in options("optimizer"):
        _compare(setting, notes, f"optimizer={optimizer}", "optimizer.lr=0.001", "model.dropout=0")


def precisions(setting: Setting, notes: Notes) -> None:
    for model in ("mlp", "cnn"):
        expected = train(setting, f"{model}-cpu", *SMALL, f"model={model}", "model.dropout=0", device="cpu")
        for precision in _DTYPES:
            what = f"model={model} training.precision={precision}"
            try:
                record = train(setting, what.replace("=", "-"), *SMALL, *what.split(), "model.dropout=0")
            except UserError as refusal:
                notes.skip(what, f"refused: {refusal}")
                continue
            _check(notes, what, record, expected, is_half=precision != "32-true")


def compiled(setting: Setting, notes: Notes) -> None:
    """torch.compile gives the same losses; what it costs once, and what a step takes with it and without."""
    if setting.kind == "cpu" and not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        notes.skip("training.compile=true", "on the CPU it needs a C++ compiler, and there is none")
        return
    several = [*SMALL, "model=cnn", "model.dropout=0", "training.epochs=3"]
    plain = train(setting, "plain", *several)
    fast = train(setting, "compiled", *several, "training.compile=true")
    loss, expected = loss_of(fast), loss_of(plain)
    notes.check("training.compile=true", differs(loss, expected) <= TOLERANCE, compared(loss, expected, TOLERANCE))
    compile_s = fast["timing"]["compile_s"]
    notes.check("timing.compile_s", bool(compile_s and compile_s > 0), f"{compile_s} s")
    if compile_s:
        notes.figure("compiling takes", compile_s, "s")
    notes.figure(
        "throughput compiled / not compiled", fast["timing"]["samples_per_s"] / plain["timing"]["samples_per_s"], ""
    )


def _compare(setting: Setting, notes: Notes, option: str, *overrides: str) -> None:
    package = _PACKAGES.get(option)
    if package is not None and importlib.util.find_spec(package) is None:
        notes.skip(option, f"{package} is not installed")
        return
    name = option.replace("=", "-")
    try:
        expected = train(setting, f"{name}-cpu", *SMALL, option, *overrides, device="cpu")
        record = train(setting, name, *SMALL, option, *overrides)
    except (TrainingFailed, UserError, RuntimeError, ImportError) as error:  # the others are still tried
        notes.check(option, False, str(error).partition("\n")[0])
        return
    _check(notes, option, record, expected)


def _check(notes: Notes, what: str, record: dict[str, Any], expected: dict[str, Any], is_half: bool = False) -> None:
    """Whether a run has learned what the CPU's has: its loss and its weights."""
    tolerance, allowed = (HALF_TOLERANCE, HALF_WEIGHTS_TOLERANCE) if is_half else (TOLERANCE, WEIGHTS_TOLERANCE)
    loss, on_cpu = loss_of(record), loss_of(expected)
    apart = weights_apart(record, expected)
    notes.check(
        what,
        differs(loss, on_cpu) <= tolerance and apart <= allowed,
        f"{compared(loss, on_cpu, tolerance)}; change of the weights off by {apart:.1e}, {allowed:g} allowed",
    )
