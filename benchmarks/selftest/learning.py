"""Compare trainings on the device with the same ones on the CPU: every model, optimizer, precision, torch.compile."""

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
            overrides = f"model={model} training.precision={precision}"
            with notes.attempt(overrides, refusals=True):
                record = train(setting, overrides.replace("=", "-"), *SMALL, *overrides.split())
                check_learned(notes, overrides, record, expected, precision)


def compiled(setting: Setting, notes: Notes) -> None:
    """Check that torch.compile gives the same losses. Note the time to compile and the ratio of throughput."""
    if setting.kind == "cpu" and not any(shutil.which(name) for name in ("g++", "c++", "clang++")):
        notes.skip("training.compile=true", "torch.compile needs a C++ compiler on the CPU, and finds none")
        return
    overrides = [*SMALL, "model=cnn", "training.epochs=3"]
    plain = train(setting, "plain", *overrides)
    with notes.attempt("training.compile=true", refusals=True):
        fast = train(setting, "compiled", *overrides, "training.compile=true")
        check_learned(notes, "training.compile=true", fast, plain)
        compile_s = fast["timing"]["compile_s"]
        notes.check("timing.compile_s", bool(compile_s and compile_s > 0), f"{compile_s or 0:.2f} s, more than 0")
        if compile_s:
            notes.figure("time to compile", compile_s, "s")
        ratio = fast["timing"]["samples_per_s"] / plain["timing"]["samples_per_s"]
        notes.figure("throughput compiled / not compiled", ratio, "")


def _compare(setting: Setting, notes: Notes, option: str, *overrides: str) -> None:
    name = option.replace("=", "-")
    with notes.attempt(option):
        expected = train(setting, f"{name}-cpu", *SMALL, option, *overrides, device="cpu")
        check_learned(notes, option, train(setting, name, *SMALL, option, *overrides), expected)
