"""What machine, system and code a run was measured with. Loads no torch: it asks the installed packages."""

import contextlib
import hashlib
import importlib.util
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from laptime.machine import machine
from laptime.secrets import mask
from laptime.version import __version__

# Laptime and what it depends on directly, extras included. By hand: what an editable installation says of it may be out
# of date.
PACKAGES = (
    "laptime", "torch", "torchvision", "pytorch-lightning", "hydra-core", "omegaconf", "numpy", "pandas",
    "tensorboard", "rich", "psutil", "scipy", "matplotlib", "jinja2", "platformdirs", "filelock", "pyyaml", "zeus",
    "timm", "onnx", "onnxruntime", "onnxscript", "torchao", "mlflow-skinny", "alembic", "sqlalchemy", "wandb",
    "hydra-optuna-sweeper", "hydra-joblib-launcher", "hydra-submitit-launcher",
)  # fmt: skip
# Set to 1, where a machine may be known by its name, to record the name beside its hash.
HOSTNAME_VARIABLE = "LAPTIME_RECORD_HOSTNAME"

# Settings that change what is measured. An allow-list: nothing else of the environment is recorded.
VARIABLE_PREFIXES = (
    "OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "ONEDNN_", "DNNL_", "PYTORCH_", "GLOO_", "NCCL_",
    "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "LD_PRELOAD",
)  # fmt: skip

_SET_BY_LIGHTNING = ("PYTORCH_NVML_BASED_CUDA_CHECK",)


def environment(cpu_name: str, usable_cores: int, config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Versions, CPU, cores, memory and operating system, as plain values; `machine` says which more of the machine.

    The name of the machine is hashed, and recorded in the clear only where LAPTIME_RECORD_HOSTNAME=1.

    Args:
        config: names classes, of the user's own perhaps, whose source is hashed with Laptime's.
        cpu_name: the processor's name.
        usable_cores: the cores that this process may use.
    """
    return {
        "code_hash": code_hash(config or {}),
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in PACKAGES},
        "cpu": cpu_name,
        "num_physical_cores": psutil.cpu_count(logical=False),
        "num_logical_cores": psutil.cpu_count(),
        "num_usable_cores": usable_cores,
        **machine(),
        "memory_bytes": psutil.virtual_memory().total,
        "os": platform.system(),
        "os_version": _os_version(),
        "kernel": platform.release(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "hostname_hash": hostname_hash(),
        "hostname": platform.node() if os.environ.get(HOSTNAME_VARIABLE, "0") not in ("", "0") else None,
        "variables": mask(
            {
                name: os.environ[name]
                for name in sorted(os.environ)
                if name.startswith(VARIABLE_PREFIXES) and name not in _SET_BY_LIGHTNING
            }
        ),
    }


def _os_version() -> str | None:
    """What the system's makers call it: `Ubuntu 24.04.1 LTS`, `15.1` of macOS; None where it doesn't say."""
    if platform.system() == "Darwin":
        return platform.mac_ver()[0] or None
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def hostname_hash() -> str:
    """Tells machines apart without naming them."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:12]


def code_hash(config: Mapping[str, Any]) -> str:
    """Of Laptime's own code, the analysis left out, and of modules that are no package's: what can change a run."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        if "analysis" not in path.relative_to(package).parts:
            digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    for module in sorted(_modules_named(config)):
        with contextlib.suppress(ImportError, ValueError, AttributeError, OSError):
            spec = importlib.util.find_spec(module)
            if spec is not None and spec.origin is not None and "site-packages" not in spec.origin:
                digest.update(module.encode() + b"\0" + Path(spec.origin).read_bytes())
    return digest.hexdigest()[:16]


def _modules_named(node: Any) -> set[str]:
    """The modules of the classes that a configuration names, Laptime's own left out."""
    found: set[str] = set()
    for key, value in node.items() if isinstance(node, Mapping) else ((None, each) for each in node):
        if isinstance(value, Mapping | list):
            found |= _modules_named(value)
        elif key == "_target_" and isinstance(value, str) and not value.startswith("laptime."):
            found.add(value.rpartition(".")[0])
    return found - {""}


def git_state(folder: Path) -> dict[str, Any]:
    """Commit, whether files of the folder differ from it or are new, and a hash of those differences.

    All null where the folder is not part of a git checkout, or is one that git ignores (an installed package).
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None or not _git(folder, "ls-files", "."):
        return {"commit": None, "dirty": None, "diff_hash": None}
    diff = _git(folder, "diff", "HEAD") or b""
    new = (_git(folder, "ls-files", "--others", "--exclude-standard", ".") or b"").decode().splitlines()
    digest = hashlib.sha256(diff)
    for name in new:
        digest.update(name.encode() + (folder / name).read_bytes())
    dirty = bool(diff or new)
    return {"commit": commit.decode().strip(), "dirty": dirty, "diff_hash": digest.hexdigest()[:16] if dirty else None}


def _git(folder: Path, *arguments: str) -> bytes | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    if package == "laptime":  # also where it is not installed: PYTHONPATH=src
        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return None
