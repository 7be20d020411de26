"""The machine, system, packages and code of a run. Loads no torch: versions come from the packages' metadata."""

import contextlib
import functools
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

# Laptime and its direct dependencies, including extras. Listed here because the metadata of an editable installation
# may be out of date.
PACKAGES = (
    "laptime", "torch", "torchvision", "pytorch-lightning", "hydra-core", "omegaconf", "numpy", "pandas",
    "tensorboard", "rich", "psutil", "scipy", "matplotlib", "jinja2", "msgspec", "platformdirs", "filelock",
    "pyyaml", "zeus", "timm", "onnx", "onnxruntime", "onnxscript", "torchao", "mlflow-skinny", "alembic",
    "sqlalchemy", "lightning", "transformers", "accelerate", "wandb", "hydra-optuna-sweeper", "hydra-joblib-launcher",
    "hydra-submitit-launcher",
)  # fmt: skip
# Laptime's packages and modules that a rank imports. A test compares them with the modules that a rank has imported.
RANK_PACKAGES = (
    "callbacks", "config", "data", "fast_start", "hooks", "lap", "loggers", "machine", "measure", "models",
    "optimizers", "ranks", "record", "runner", "schedulers", "tasks", "training",
)  # fmt: skip
# With the value 1, run.json has the name of the machine, not only its hash.
HOSTNAME_VARIABLE = "LAPTIME_RECORD_HOSTNAME"

# Allow-list of variables that a training process reads. No other variables are recorded.
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
# torch, Lightning, joblib and torchrun set these themselves.
_SET_WHILE_RUNNING = ("CUDA_MODULE_LOADING", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK",
                      "PYTORCH_NVML_BASED_CUDA_CHECK", "TORCHELASTIC_",
                      "TORCH_NCCL_ASYNC_ERROR_HANDLING")  # fmt: skip
# Recorded variables that do not change the timing: paths, names, visible devices (the device that trains is recorded
# separately), numbers of threads (strategy.threads_per_rank sets them), and most of Python's own.
_NOT_TIMING = re.compile(
    r"(?!LD_PRELOAD).*(_DIR|_FILE|_HOME|_PATH|_ROOT|_VISIBLE_DEVICES|_IFNAME|_NUM_THREADS|_MAXIMUM_THREADS)"
    r"|ONEAPI_DEVICE_SELECTOR|ZE_AFFINITY_MASK|SLURM_.*|CXX|NVIDIA_(?!TF32).*"
    r"|PYTHON(?!MALLOC|DEVMODE|OPTIMIZE|TRACEMALLOC|_GIL|_JIT|ASYNCIODEBUG).*"
)
# Settings that slow torch down, on purpose or left over from debugging.
_SLOWING_SETTINGS = (
    "ATEN_CPU_CAPABILITY", "AMD_SERIALIZE_COPY", "AMD_SERIALIZE_KERNEL", "CUDA_LAUNCH_BLOCKING", "DNNL_MAX_CPU_ISA",
    "DNNL_VERBOSE", "HIP_LAUNCH_BLOCKING", "MALLOC_CHECK_", "MALLOC_PERTURB_", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS",
    "MKL_VERBOSE", "OMP_THREAD_LIMIT", "ONEDNN_MAX_CPU_ISA", "ONEDNN_VERBOSE", "PYTHONDEVMODE",
    "PYTHONMALLOC", "PYTHONTRACEMALLOC", "PYTORCH_NO_CUDA_MEMORY_CACHING", "PYTORCH_NO_HIP_MEMORY_CACHING",
    "TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE", "TORCH_DISTRIBUTED_DEBUG",
    "sys.setprofile", "sys.settrace", "tracemalloc", "python -X dev", "torch.backends.mkldnn",
    "torch.autograd.set_detect_anomaly",
)  # fmt: skip
_FALSE_VALUES = ("", "0", "false", "no", "off")


def environment(cpu_name: str, usable_cores: int, config: Mapping[str, Any] | None = None) -> Environment:
    """Return the section `environment` of run.json: versions, CPU, cores, memory, operating system, variables.

    It has a hash of the machine's name, and the name itself only with LAPTIME_RECORD_HOSTNAME=1.

    Args:
        cpu_name: the processor's name.
        usable_cores: number of cores that this process may use.
        config: the configuration. The source of user classes that it names is hashed together with Laptime's.
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
        hostname=platform.node() if os.environ.get(HOSTNAME_VARIABLE, "").lower() not in _FALSE_VALUES else None,
        variables=mask(_recorded(os.environ)),
        settings=mask(settings()),
    )


def _recorded(variables: Mapping[str, str]) -> dict[str, str]:
    names = (name for name in sorted(variables) if name.startswith(VARIABLE_PREFIXES))
    return {name: variables[name] for name in names if not is_set_while_running(name)}


def is_set_while_running(name: str) -> bool:
    """Whether torch, Lightning, joblib or torchrun set this variable themselves."""
    return name.startswith(_SET_WHILE_RUNNING)


def settings(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables that can change the timing of a training. Runs with different ones are not repeats.

    torch and its libraries read them when they are loaded.

    Args:
        variables: the environment of a process; None: this process.
    """
    recorded = _recorded(os.environ if variables is None else variables)
    return {name: value for name, value in recorded.items() if value and not _NOT_TIMING.fullmatch(name)}


def python_settings() -> dict[str, str]:
    """Return settings that change the timing and that Python code or Python's flags have made in this process.

    Settings with the default value are left out.
    """
    torch: Any = sys.modules.get("torch")
    is_on = {
        "sys.setprofile": sys.getprofile() is not None,
        "sys.settrace": sys.gettrace() is not None,
        "tracemalloc": tracemalloc.is_tracing() and "PYTHONTRACEMALLOC" not in os.environ,
        "python -X dev": sys.flags.dev_mode and "PYTHONDEVMODE" not in os.environ,
        "torch.use_deterministic_algorithms": torch and torch.are_deterministic_algorithms_enabled(),
        "torch.autograd.set_detect_anomaly": torch and torch.is_anomaly_enabled(),
    }
    # _get_mkldnn_enabled is private; torch.backends.mkldnn.enabled calls it (torch 2.14). Not reported upstream.
    is_mkldnn_off = torch and torch.backends.mkldnn.is_available() and not torch._C._get_mkldnn_enabled()
    return {name: "on" for name, is_set in is_on.items() if is_set} | (
        {"torch.backends.mkldnn": "disabled"} if is_mkldnn_off else {}
    )


def slowing_settings(values: Mapping[str, str]) -> list[str]:
    """Return the settings that slow torch down, as `NAME=value`.

    Args:
        values: the results of `settings` and `python_settings`.
    """
    return [f"{name}={values[name]}" for name in _SLOWING_SETTINGS if values.get(name, "").lower() not in _FALSE_VALUES]


def ineffective_variables(threads_per_rank: int) -> list[str]:
    """Return variables that request another number of threads than the ranks have, as `NAME=value`.

    Under torchrun, OMP_NUM_THREADS=1 is left out, because torchrun sets it itself.
    """
    requested = {name: os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    if "TORCHELASTIC_RUN_ID" in os.environ and requested["OMP_NUM_THREADS"] == "1":
        del requested["OMP_NUM_THREADS"]
    return [f"{name}={value}" for name, value in requested.items() if value and value != str(threads_per_rank)]


# Hydra may change the variables for a job (hydra.job.env_set), and Python code at any time.
_SETTINGS_AT_START = settings()


def settings_have_changed() -> bool:
    """Whether the settings changed after this process started. They then take effect in new processes only."""
    return settings() != _SETTINGS_AT_START


def _os_version() -> str | None:
    """Return the version of the operating system: `Ubuntu 24.04.1 LTS`, or `15.1` for macOS; None: not known."""
    if platform.system() == "Darwin":
        return platform.mac_ver()[0] or None
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def code_hash(config: Mapping[str, Any]) -> str:
    """Hash the code that a rank imports: RANK_PACKAGES, and all modules of the packages of user classes.

    Code that only plans, shows or compares runs is left out.
    """
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    files = (path for name in RANK_PACKAGES for path in (*package.glob(f"{name}.py"), *(package / name).rglob("*.py")))
    for path in sorted(files):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    for name in sorted(_target_packages(config)):
        for path in _user_files(name):
            with contextlib.suppress(OSError):
                digest.update(f"{name}/{path.name}".encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _user_files(name: str) -> list[Path]:
    """Return the Python files of a module or package; none if it is installed, because its version is recorded."""
    if name == "__main__":
        script = getattr(sys.modules[name], "__file__", None)
        return [Path(script)] if script is not None and not _is_installed(Path(script).absolute()) else []
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return []
    locations = (spec.submodule_search_locations or [spec.origin or ""]) if spec is not None else []
    paths = [Path(location) for location in locations if location and not _is_installed(Path(location))]
    files = [file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])]
    return sorted(file for file in files if file.suffix == ".py")


def _is_installed(path: Path) -> bool:
    installed = (sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
    return bool({"site-packages", "dist-packages"} & set(path.parts)) or any(map(path.is_relative_to, installed))


def _target_packages(node: Any) -> set[str]:
    """Return the top-level modules and packages of the classes that a configuration names, without Laptime's."""
    packages: set[str] = set()
    for key, value in node.items() if isinstance(node, Mapping) else ((None, item) for item in node):
        if isinstance(value, Mapping | list):
            packages |= _target_packages(value)
        elif key == "_target_" and isinstance(value, str) and not value.startswith("laptime."):
            packages.add(value.partition(".")[0] if "." in value else "")
    return packages - {""}


def git_state(folder: Path) -> Git:
    """Return the commit of a folder, whether it has changed or new files, and a hash of these changes.

    All values are null if the folder is not in a git checkout, or if git ignores it (an installed package).
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


@functools.cache  # a further run of a sweep has loaded the packages of the first one
def _version(package: str) -> str | None:
    if package == "laptime":  # also if it is not installed (PYTHONPATH=src)
        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return None
