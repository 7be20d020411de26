"""Does the device learn what the CPU learns? Every model, optimizer and precision, and torch.compile."""

import shutil

from laptime.measure.peak import DTYPES
from options import options
from selftest.part import Notes, Setting
from selftest.trainings import SMALL, check_learned, train


def models(setting: Setting, notes: Notes) -> None:
    for model in options("model"):
        _compare(setting, notes, f"model={model}")


def optimizers(setting: Setting, notes: Notes) -> None:
    for optimizer in options("optimizer"):
        _compare(setting, notes, f"optimizer={optimizer}", "optimizer.lr=0.001")


def precisions(setting: Setting, notes: Notes) -> None:
    for model in ("mlp", "cnn"):
        expected = train(setting, f"{model}-cpu", *SMALL, f"model={model}", device="cpu")
        for precision in DTYPES:
            what = f"model={model} training.precision={precision}"
            with notes.attempt(what, refusals=True):
                record = train(setting, what.replace("=", "-"), *SMALL, *what.split())
                check_learned(notes, what, record, expected, precision)


def compiled(setting: Setting, notes: Notes) -> None:
    """torch.compile gives the same losses; what it costs once, and what a step takes with it and without."""
    if setting.kind == "cpu" and not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        notes.skip("training.compile=true", "on the CPU it needs a C++ compiler, and there is none")
        return
    several = [*SMALL, "model=cnn", "training.epochs=3"]
    plain = train(setting, "plain", *several)
    with notes.attempt("training.compile=true", refusals=True):
        fast = train(setting, "compiled", *several, "training.compile=true")
        check_learned(notes, "training.compile=true", fast, plain)
        compile_s = fast["timing"]["compile_s"]
        notes.check("timing.compile_s", bool(compile_s and compile_s > 0), f"{compile_s or 0:.2f} s, more than 0")
        if compile_s:
            notes.figure("compiling takes", compile_s, "s")
        ratio = fast["timing"]["samples_per_s"] / plain["timing"]["samples_per_s"]
        notes.figure("throughput compiled / not compiled", ratio, "")


def _compare(setting: Setting, notes: Notes, option: str, *overrides: str) -> None:
    name = option.replace("=", "-")
    with notes.attempt(option):
        expected = train(setting, f"{name}-cpu", *SMALL, option, *overrides, device="cpu")
        check_learned(notes, option, train(setting, name, *SMALL, option, *overrides), expected)
