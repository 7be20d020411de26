"""What machine, system and code a run was measured with. Loads no torch: it asks the installed packages."""

import contextlib
import hashlib
import importlib.util
import os
import platform
import re
import subprocess
import sys
import sysconfig
import tracemalloc
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from laptime.machine.hardware import machine
from laptime.record.directory import hostname_hash
from laptime.record.masking import mask
from laptime.record.schema import Environment, Git
from laptime.version import __version__

# Laptime and what it depends on directly, extras included. By hand: what an editable installation says of it may be out
# of date.
PACKAGES = (
    "laptime", "torch", "torchvision", "pytorch-lightning", "hydra-core", "omegaconf", "numpy", "pandas",
    "tensorboard", "rich", "psutil", "scipy", "matplotlib", "jinja2", "msgspec", "platformdirs", "filelock",
    "pyyaml", "zeus", "timm", "onnx", "onnxruntime", "onnxscript", "torchao", "mlflow-skinny", "alembic",
    "sqlalchemy", "lightning", "transformers", "accelerate", "wandb", "hydra-optuna-sweeper", "hydra-joblib-launcher",
    "hydra-submitit-launcher",
)  # fmt: skip
# Laptime's folders whose modules a rank imports. A test compares them with what one has imported.
RANK_PACKAGES = (
    "callbacks", "config", "data", "lap", "loggers", "machine", "measure", "models", "ranks", "record", "runner",
    "schedulers", "training",
)  # fmt: skip
# Set to 1, where a machine may be known by its name, to record the name beside its hash.
HOSTNAME_VARIABLE = "LAPTIME_RECORD_HOSTNAME"

# Variables that something in a training process reads. An allow-list: nothing else of the environment is recorded.
VARIABLE_PREFIXES = (
    "ATEN_", "C10_", "CXX", "INDUCTOR_", "PYTORCH_", "TORCH", "TRITON_",  # torch and its compiler
    "BLIS_", "DNNL_", "GOMP_", "GOTO_", "KMP_", "LIBOMP", "MKL_", "NUMEXPR_", "OMP_", "ONEDNN_", "OPENBLAS_",
    "VECLIB_",  # matrix products, OpenMP
    "DYLD_", "GLIBC_TUNABLES", "JEMALLOC", "LD_", "MALLOC_", "MIMALLOC_", "TCMALLOC_",  # loader, allocators
    "CCL_", "FI_", "GLOO_", "I_MPI_", "NCCL_", "RCCL_", "UCC_", "UCX_",  # communication
    "CUBLAS", "CUDA_", "CUDNN_", "NVIDIA_",
    "AMD_", "GPU_MAX_", "HIP", "HSA_", "MIOPEN_", "ROCBLAS_", "ROCM_", "ROCR_", "TENSILE_",
    "IGC_", "IPEX_", "NEO", "ONEAPI_", "SYCL_", "UR_", "ZES_", "ZE_",
    "METAL_", "MTL_",
    "NPY_", "PYTHON", "THP_",  # THP_: huge pages for torch's memory
    "SLURM_JOB_ID",
)  # fmt: skip
# Set by torch, Lightning, joblib and torchrun themselves, in processes where nobody has asked for it.
_SET_WHILE_RUNNING = ("CUDA_MODULE_LOADING", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK",
                      "PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHELASTIC_",
                      "TORCH_NCCL_ASYNC_ERROR_HANDLING")  # fmt: skip
# Recorded variables that change no timing of a training: places, names, which devices there are (the one that trains is
# recorded by itself), numbers of threads (strategy.threads_per_rank decides), and most of Python's own.
_NO_SETTING = re.compile(
    r"(?!LD_PRELOAD).*(_DIR|_FILE|_HOME|_PATH|_ROOT|_VISIBLE_DEVICES|_IFNAME|_NUM_THREADS|_MAXIMUM_THREADS)"
    r"|ONEAPI_DEVICE_SELECTOR|ZE_AFFINITY_MASK|SLURM_.*|CXX|NVIDIA_(?!TF32).*"
    r"|PYTHON(?!MALLOC|DEVMODE|OPTIMIZE|TRACEMALLOC|_GIL|_JIT|ASYNCIODEBUG).*"
)
# Settings with which torch computes slower than this machine can, on purpose or left over from debugging.
_RESTRAINTS = (
    "ATEN_CPU_CAPABILITY", "AMD_SERIALIZE_COPY", "AMD_SERIALIZE_KERNEL", "CUDA_LAUNCH_BLOCKING", "DNNL_MAX_CPU_ISA",
    "DNNL_VERBOSE", "HIP_LAUNCH_BLOCKING", "MALLOC_CHECK_", "MALLOC_PERTURB_", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS",
    "MKL_VERBOSE", "OMP_THREAD_LIMIT", "ONEDNN_MAX_CPU_ISA", "ONEDNN_VERBOSE", "PYTHONDEVMODE",
    "PYTHONMALLOC", "PYTHONTRACEMALLOC", "PYTORCH_NO_CUDA_MEMORY_CACHING", "PYTORCH_NO_HIP_MEMORY_CACHING",
    "TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE", "TORCH_DISTRIBUTED_DEBUG",
    "sys.setprofile", "sys.settrace", "tracemalloc", "python -X dev", "torch.backends.mkldnn",
    "torch.autograd.set_detect_anomaly",
)  # fmt: skip
_OFF = ("", "0", "false", "no", "off")


def environment(cpu_name: str, usable_cores: int, config: Mapping[str, Any] | None = None) -> Environment:
    """Versions, CPU, cores, memory and operating system; `machine` says which more of the machine.

    The name of the machine is hashed, and recorded in the clear only where LAPTIME_RECORD_HOSTNAME=1.

    Args:
        config: names classes, of the user's own perhaps, whose source is hashed with Laptime's.
        cpu_name: the processor's name.
        usable_cores: the cores that this process may use.
    """
    return Environment(
        code_hash=code_hash(config or {}),
        python=platform.python_version(),
        packages={package: _version(package) for package in PACKAGES},
        cpu=cpu_name,
        num_physical_cores=psutil.cpu_count(logical=False),
        num_logical_cores=psutil.cpu_count(),
        num_usable_cores=usable_cores,
        **machine(),
        memory_bytes=psutil.virtual_memory().total,
        os=platform.system(),
        os_version=_os_version(),
        kernel=platform.release(),
        platform=platform.platform(),
        machine=platform.machine(),
        hostname_hash=hostname_hash(),
        hostname=platform.node() if os.environ.get(HOSTNAME_VARIABLE, "").lower() not in _OFF else None,
        variables=mask(_recorded(os.environ)),
        settings=mask(settings()),
    )


def _recorded(variables: Mapping[str, str]) -> dict[str, str]:
    names = (name for name in sorted(variables) if name.startswith(VARIABLE_PREFIXES))
    return {name: variables[name] for name in names if not is_set_while_running(name)}


def is_set_while_running(name: str) -> bool:
    """Whether torch, Lightning, joblib or torchrun set a variable themselves."""
    return name.startswith(_SET_WHILE_RUNNING)


def settings(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables that can change a training's timing, by name: runs that differ in them are no repeats.

    torch and the libraries below it read them when they are loaded.

    Args:
        variables: of a process; None: this one's.
    """
    found = _recorded(os.environ if variables is None else variables)
    return {name: value for name, value in found.items() if value and not _NO_SETTING.fullmatch(name)}


def python_settings() -> dict[str, str]:
    """What Python code, or a flag of Python's, has set in this process and what changes how fast it computes: of no
    variable, so `settings` can't know it. Empty where all is as usual."""
    torch: Any = sys.modules.get("torch")
    found = {
        "sys.setprofile": sys.getprofile() is not None,
        "sys.settrace": sys.gettrace() is not None,
        "tracemalloc": tracemalloc.is_tracing() and "PYTHONTRACEMALLOC" not in os.environ,
        "python -X dev": sys.flags.dev_mode and "PYTHONDEVMODE" not in os.environ,
        "torch.use_deterministic_algorithms": torch and torch.are_deterministic_algorithms_enabled(),
        "torch.autograd.set_detect_anomaly": torch and torch.is_anomaly_enabled(),
    }
    is_without = torch and torch.backends.mkldnn.is_available() and not torch._C._get_mkldnn_enabled()
    return {name: "on" for name, is_set in found.items() if is_set} | (
        {"torch.backends.mkldnn": "disabled"} if is_without else {}
    )


def slowing_settings(found: Mapping[str, str]) -> list[str]:
    """Those of `settings` with which torch computes slower than it can, as `NAME=value`."""
    return [f"{name}={found[name]}" for name in _RESTRAINTS if found.get(name, "").lower() not in _OFF]


def ineffective_variables(threads_per_rank: int) -> list[str]:
    """Variables that ask for another number of threads than the ranks have, as `NAME=value`.

    torchrun sets OMP_NUM_THREADS=1 where nobody has set it.
    """
    asked = {name: os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    if "TORCHELASTIC_RUN_ID" in os.environ and asked["OMP_NUM_THREADS"] == "1":
        del asked["OMP_NUM_THREADS"]
    return [f"{name}={value}" for name, value in asked.items() if value and value != str(threads_per_rank)]


# As they were when this process began. Hydra sets others for a job (hydra.job.env_set), Python code at any time.
_AT_START = settings()


def settings_have_changed() -> bool:
    """Whether the settings are others than when this process began: then they are in force in new processes alone."""
    return settings() != _AT_START


def _os_version() -> str | None:
    """What the system's makers call it: `Ubuntu 24.04.1 LTS`, `15.1` of macOS; None where it doesn't say."""
    if platform.system() == "Darwin":
        return platform.mac_ver()[0] or None
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def code_hash(config: Mapping[str, Any]) -> str:
    """Of the code that a rank imports: Laptime's rooms that train and measure, and all modules of the packages of the
    user's own classes. What only plans, shows or compares runs is not in it."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(path for room in RANK_PACKAGES for path in (package / room).rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    for name in sorted(_packages_named(config)):
        for path in _own_files(name):
            with contextlib.suppress(OSError):
                digest.update(f"{name}/{path.name}".encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _own_files(name: str) -> list[Path]:
    """The Python files of a module or a whole package; none of what is installed, whose versions are recorded."""
    if name == "__main__":
        script = getattr(sys.modules[name], "__file__", None)
        return [Path(script)] if script is not None and not _is_installed(Path(script).absolute()) else []
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return []
    places = (spec.submodule_search_locations or [spec.origin or ""]) if spec is not None else []
    own = [Path(place) for place in places if place and not _is_installed(Path(place))]
    files = [file for place in own for file in (place.rglob("*.py") if place.is_dir() else [place])]
    return sorted(file for file in files if file.suffix == ".py")


def _is_installed(path: Path) -> bool:
    installed = (sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
    return bool({"site-packages", "dist-packages"} & set(path.parts)) or any(map(path.is_relative_to, installed))


def _packages_named(node: Any) -> set[str]:
    """The first part of each class that a configuration names, Laptime's own left out: a module or a package."""
    found: set[str] = set()
    for key, value in node.items() if isinstance(node, Mapping) else ((None, each) for each in node):
        if isinstance(value, Mapping | list):
            found |= _packages_named(value)
        elif key == "_target_" and isinstance(value, str) and not value.startswith("laptime."):
            found.add(value.partition(".")[0] if "." in value else "")
    return found - {""}


def git_state(folder: Path) -> Git:
    """Commit, whether files of the folder differ from it or are new, and a hash of those differences.

    All null where the folder is not part of a git checkout, or is one that git ignores (an installed package).
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None or not _git(folder, "ls-files", "."):
        return Git()
    diff = _git(folder, "diff", "HEAD") or b""
    new = (_git(folder, "ls-files", "--others", "--exclude-standard", ".") or b"").decode().splitlines()
    digest = hashlib.sha256(diff)
    for name in new:
        digest.update(name.encode() + (folder / name).read_bytes())
    dirty = bool(diff or new)
    return Git(commit=commit.decode().strip(), dirty=dirty, diff_hash=digest.hexdigest()[:16] if dirty else None)


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
