"""Does the device learn what the CPU learns? Every model, optimizer and precision, and torch.compile."""

import shutil

from laptime.compose import config_dir
from laptime.errors import TrainingFailed, UserError
from laptime.peak import _DTYPES
from options import options
from selftest.part import Notes, Setting, missing_package
from selftest.trainings import SMALL, check_learned, train


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
            check_learned(notes, what, record, expected, is_half=precision != "32-true")


def compiled(setting: Setting, notes: Notes) -> None:
    """torch.compile gives the same losses; what it costs once, and what a step takes with it and without."""
    if setting.kind == "cpu" and not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        notes.skip("training.compile=true", "on the CPU it needs a C++ compiler, and there is none")
        return
    several = [*SMALL, "model=cnn", "model.dropout=0", "training.epochs=3"]
    plain = train(setting, "plain", *several)
    fast = train(setting, "compiled", *several, "training.compile=true")
    check_learned(notes, "training.compile=true", fast, plain)
    compile_s = fast["timing"]["compile_s"]
    notes.check("timing.compile_s", bool(compile_s and compile_s > 0), f"{compile_s} s")
    if compile_s:
        notes.figure("compiling takes", compile_s, "s")
    notes.figure(
        "throughput compiled / not compiled", fast["timing"]["samples_per_s"] / plain["timing"]["samples_per_s"], ""
    )


def _compare(setting: Setting, notes: Notes, option: str, *overrides: str) -> None:
    name = option.replace("=", "-")
    try:
        expected = train(setting, f"{name}-cpu", *SMALL, option, *overrides, device="cpu")
        record = train(setting, name, *SMALL, option, *overrides)
    except (TrainingFailed, UserError, RuntimeError, ImportError) as error:  # the others are still tried
        package = missing_package(error)
        if package is not None:
            notes.skip(option, f"{package} is not installed")
        else:
            notes.check(option, False, str(error).partition("\n")[0])
        return
    check_learned(notes, option, record, expected)
