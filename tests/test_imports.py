"""Imports follow the contracts in pyproject.toml, and what doesn't need torch doesn't load it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from laptime.cli import main

ROOT = Path(__file__).resolve().parents[1]


def test_imports_point_one_way():
    """In another process, because import-linter changes the logging of its process."""
    check = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout


# Slow to import, and of no use before a training or an analysis starts.
HEAVY = (
    "torch", "numpy", "pandas", "scipy", "matplotlib", "optuna", "joblib", "submitit", "pytorch_lightning", "lightning",
    "torchvision", "tensorboard", "jinja2", "asyncio",
)  # fmt: skip


def without(modules: tuple[str, ...], code: str, *arguments: str, **environment: str) -> None:
    """Run Python code in a new interpreter, which must not have loaded these modules at its end."""
    code += f"\nloaded = [name for name in {modules} if name in sys.modules]\nassert not loaded, loaded\n"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}", *arguments], capture_output=True, text=True,
        env=os.environ | environment, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def run_command(code: int) -> str:
    """Python code that runs the command `laptime` with the arguments of the process, which must end with this code."""
    return f"""
from laptime.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert end.code == {code}, end.code
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["train", "--help"],
        ["tune", "--help"],
        ["--cfg", "job"],
        ["--hydra-help"],
        ["--info", "searchpath"],
        ["--shell-completion", "query=bash"],
    ],
    ids=" ".join,
)
def test_help_and_completion_load_nothing_heavy(arguments, work_folder):
    # The variables that bash sets for a completion.
    without(HEAVY, run_command(0), *arguments, COMP_LINE="python train.py device=", COMP_POINT="23")
    assert list(work_folder.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["training.epoch=3"],
        ["training.epochs=x"],
        ["training.epochs=-1"],
        ["training.ema_decay=0.9", "training.swa_start_epoch=1"],
        ["training.epochs=[1"],
        ["--foo"],
        ["-m", "training.epochs=1,-1"],
        ["sweep.resume=nope"],
        ["sweep.dry_run=true"],
        ["-m", "seed=1,1"],
        ["-m", "training.checkpoint=latest"],
        ["strategy.bucket_cap_mb=3"],
        ["device=cpu", "training.cudnn_benchmark=true"],
        ["evaluate", "run=nope"],
        ["export", "run=nope"],
        ["tune", "nope"],
        ["watch", "nope"],
        ["doctor", "nope"],
        ["analyze", "nope"],
        ["nope"],
    ],
    ids=" ".join,
)
def test_refusals_load_nothing_heavy(arguments, work_folder):
    without(HEAVY, run_command(2), *arguments)
    assert list(work_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "num"), [(["train", "--help"], 1), (["--cfg", "job"], 1), (["training.epoch=3"], 2)]
)
def test_a_command_composes_no_more_than_it_needs(arguments, num, monkeypatch, work_folder):
    calls = []
    load = ConfigLoaderImpl.load_configuration
    monkeypatch.setattr(
        ConfigLoaderImpl, "load_configuration", lambda *args, **kwargs: calls.append(1) or load(*args, **kwargs)
    )
    with pytest.raises(SystemExit):
        main(arguments)
    assert len(calls) == num


def test_importing_loads_no_torch():
    modules = (
        "laptime", "laptime.record.files", "laptime.config.schema", "laptime.config.compose",
        "laptime.machine.environment", "laptime.terminal", "laptime.analysis.frames", "laptime.analysis.write",
        "laptime.analysis.tensorboard", "laptime.analysis.sweep_callback",
    )  # fmt: skip
    code = f"import importlib\nfor name in {modules}:\n    importlib.import_module(name)\n"
    without(("torch",), f"{code}    assert 'torch' not in sys.modules, name")
