"""Imports follow the contracts in pyproject.toml, and what doesn't need torch doesn't load it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_imports_point_one_way():
    """In another process, because import-linter changes the logging of its process."""
    check = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout


def without_torch(code: str, *arguments: str, **environment: str) -> None:
    """Run Python code in a new interpreter, which must not have loaded torch at its end."""
    code += "\nassert 'torch' not in sys.modules, 'torch was loaded'\n"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}", *arguments], capture_output=True, text=True,
        env=os.environ | environment, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


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
def test_help_and_completion_load_no_torch(arguments, work_folder):
    code = (
        "from laptime.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code"
    )
    # The variables that bash sets for a completion.
    without_torch(code, *arguments, COMP_LINE="python train.py device=", COMP_POINT="23")
    assert list(work_folder.iterdir()) == []


def test_importing_loads_no_torch():
    modules = (
        "laptime", "laptime.record.files", "laptime.config.schema", "laptime.config.compose",
        "laptime.machine.environment", "laptime.terminal", "laptime.analysis.frames", "laptime.analysis.write",
        "laptime.analysis.tensorboard", "laptime.analysis.sweep_callback",
    )  # fmt: skip
    code = f"import importlib\nfor name in {modules}:\n    importlib.import_module(name)\n"
    without_torch(f"{code}    assert 'torch' not in sys.modules, name")
