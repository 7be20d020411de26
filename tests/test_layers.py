"""Imports point one way, and what needs no torch loads none (design: record <- config <- device <- ... <- train.py)."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import laptime

PACKAGE = Path(laptime.__file__).parent

# A module may import from its own layer's earlier names and from every layer above it in this list.
LAYERS = [
    ["errors", "secrets", "heartbeat", "notify", "extras"],
    ["record"],
    [
        "config",
        "compose",
        "forget_jobs",
        "targets",
        "security",
        "estimate",
        "dry_run",
        "machine",
        "environment",
        "stopping",
        "run_dir",
        "trained_run_config",
        "command",
        "slurm",
        "fresh_processes",
        "console",
        "process_memory",
        "noise",
        "quality",
        "limit",
    ],
    ["analysis", "watch"],
    ["torchrun", "ranks"],
    ["device", "torch_build", "xpu", "faults", "forgiving_logger", "loggers"],
    ["step_clock", "peak", "sampler", "energy", "step_hooks"],
    ["data"],
    ["models", "schedulers", "mixup", "weight_average"],
    ["resume", "shared_memory", "sharded_optimizer", "comm_hooks"],
    ["classifier"],
    ["callbacks", "lightning_strategy", "breakdown"],
    ["predict", "latency"],
    ["training"],
    ["trained_run"],
    ["evaluate"],
    ["export"],
    ["rank_process"],
    ["launch"],
    ["core_shares", "optuna_faults", "run_job"],
    ["doctor", "resume_sweep"],
    ["sweep"],
    ["cli"],
    ["tune"],
    ["__init__"],
    ["__main__"],
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


# The analysis shares nothing with training but the record, and how a terminal is written to.
OF_ANALYSIS = {"errors", "record", "console", "analysis"}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_layers(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "laptime":
            names = [f"laptime.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("laptime.")}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    own = layer_of(path)
    assert own in RANK, f"{path.name} has no place in the layers"
    if own == "analysis":
        assert imported_layers(path) <= OF_ANALYSIS
    for other in imported_layers(path) - {own}:
        assert RANK[other] <= RANK[own], f"{path.name} imports laptime.{other}"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--cfg", "job"], ["--hydra-help"], ["--info", "searchpath"], ["--shell-completion", "query=bash"]],
    ids=" ".join,
)
def test_asking_loads_no_torch(arguments, work_folder):
    code = (
        "import sys\nfrom laptime.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert 'torch' not in sys.modules, 'torch was loaded'\n"
    )
    shell = {"COMP_LINE": "python train.py device=", "COMP_POINT": "23"}  # what bash tells when it asks to complete
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=os.environ | shell
    )
    assert done.returncode == 0, done.stderr
    assert list(work_folder.iterdir()) == []


@pytest.mark.parametrize(
    "module",
    [
        "laptime",
        "laptime.record",
        "laptime.config",
        "laptime.environment",
        "laptime.compose",
        "laptime.console",
        "laptime.analysis.frames",
        "laptime.analysis.write",
        "laptime.analysis.tensorboard",
        "laptime.analysis.sweep_callback",
    ],
)
def test_importing_loads_no_torch(module):
    code = f"import sys, {module}; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
