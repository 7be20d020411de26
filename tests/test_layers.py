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
    ["errors", "secrets", "heartbeat", "notify", "extras", "version"],
    ["record"],
    ["latest"],
    [
        "typed",
        "config",
        "compose",
        "forget_jobs",
        "targets",
        "security",
        "sweep_plan",
        "hydra_jobs",
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
    ["preflight"],
    ["device", "torch_build", "xpu", "faults", "forgiving_logger", "loggers"],
    ["step_clock", "peak", "sampler", "energy", "step_hooks"],
    ["data"],
    ["models", "schedulers", "mixup", "weight_average"],
    ["resume", "shared_memory", "sharded_optimizer", "comm_hooks"],
    ["classifier"],
    ["callbacks", "lightning_strategy", "breakdown"],
    ["predict", "latency"],
    ["open_groups"],
    ["training"],
    ["trained_run"],
    ["evaluate"],
    ["export"],
    ["rank_process"],
    ["launch"],
    ["core_shares", "optuna_faults", "run_job"],
    ["doctor", "resume_sweep"],
    ["sweep", "without_effect"],
    ["cli"],
    ["tune"],
    ["__init__"],
    ["__main__"],
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


# The analysis shares nothing with training but the record, and how a terminal is written to.
OF_ANALYSIS = {"errors", "record", "latest", "console", "analysis"}


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


@pytest.mark.unit
def test_imports_point_one_way():
    wrong = []
    for path in modules():
        own = layer_of(path)
        assert own in RANK, f"{path.name} has no place in the layers"
        others = imported_layers(path)
        if own == "analysis" and not others <= OF_ANALYSIS:
            wrong.append(f"{path.name} imports {others - OF_ANALYSIS}")
        wrong += [f"{path.name} imports laptime.{other}" for other in others - {own} if RANK[other] > RANK[own]]
    assert not wrong


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
    [["--help"], ["--cfg", "job"], ["--hydra-help"], ["--info", "searchpath"], ["--shell-completion", "query=bash"]],
    ids=" ".join,
)
def test_asking_loads_no_torch(arguments, work_folder):
    code = (
        "from laptime.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code"
    )
    # What bash tells when it asks to complete.
    without_torch(code, *arguments, COMP_LINE="python train.py device=", COMP_POINT="23")
    assert list(work_folder.iterdir()) == []


def test_importing_loads_no_torch():
    modules = (
        "laptime", "laptime.record", "laptime.config", "laptime.environment", "laptime.compose", "laptime.console",
        "laptime.analysis.frames", "laptime.analysis.write", "laptime.analysis.tensorboard",
        "laptime.analysis.sweep_callback",
    )  # fmt: skip
    code = f"import importlib\nfor name in {modules}:\n    importlib.import_module(name)\n"
    without_torch(f"{code}    assert 'torch' not in sys.modules, name")
