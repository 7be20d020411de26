"""How torch was built and configured, and the device's driver. Call it in a rank after its threads are set."""

import platform
import re
from pathlib import Path
from typing import Any

import torch

from laptime.machine.device import Device
from laptime.machine.hardware import read_small_file


def torch_build() -> dict[str, Any]:
    """Return torch's libraries, their versions and thread counts; None: torch was built without the library."""
    built_with = torch.__config__.show()
    return {
        "version": str(torch.__version__),
        "debug": torch.version.debug,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "blas": _named(r"\bBLAS_INFO=(\w+)", built_with),
        "mkl": _named(r"Math Kernel Library Version (\S+?)(?:-| )", built_with),
        "onednn": _named(r"(?:MKL-DNN|oneDNN) v(\S+)", built_with) if torch.backends.mkldnn.is_available() else None,
        "openmp": _named(r"OpenMP (\S+)", built_with) if torch.backends.openmp.is_available() else None,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "xpu": torch.version.xpu,
        "cudnn": torch.backends.cudnn.version(),
        "num_threads": torch.get_num_threads(),
        "num_interop_threads": torch.get_num_interop_threads(),
    }


def driver_version(device: Device, root: Path = Path("/")) -> str | None:
    """Return the version of the device's driver; for MPS, that of macOS. None: a CPU, or not known.

    Args:
        root: folder that contains proc/ and sys/; tests use another one.
    """
    if device.used == "mps":
        return f"macOS {platform.mac_ver()[0]}"
    if device.used == "xpu":
        return str(torch.xpu.get_device_properties(device.index).driver_version)
    if device.used == "cuda" and torch.version.hip is not None:
        return read_small_file(root / "sys/module/amdgpu/version") or None
    if device.used == "cuda":
        return _named(r"Kernel Module.*?\s([0-9]+\.[0-9.]+)\s", read_small_file(root / "proc/driver/nvidia/version"))
    return None


def _named(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match[1] if match else None
