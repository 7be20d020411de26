"""Finds the device that a run uses for the one that it requests, and its properties. Built on torch.accelerator.

torch calls AMD GPUs (its ROCm builds) `cuda`.
"""

import logging
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from laptime.errors import UserError
from laptime.machine import slurm
from laptime.machine.hardware import allowed_cores, container_cores

log = logging.getLogger(__name__)

ACCELERATORS = ("cuda", "mps", "xpu")


@dataclass(frozen=True)
class Device:
    """The device of a run.

    Attributes:
        requested: the device in the configuration: auto, cpu, mps, cuda or xpu.
        used: the device that trains: cpu, mps, cuda or xpu.
        name: the name of the hardware.
        num_devices: number of devices of this kind in the machine; 1 for the CPU.
        memory_bytes: memory of one device, unified memory included; None: not known.
        index: torch's index of the device that this process uses (within CUDA_VISIBLE_DEVICES).
    """

    requested: str
    used: str
    name: str
    num_devices: int
    memory_bytes: int | None
    index: int = 0

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cpu") if self.used == "cpu" else torch.device(self.used, self.index)

    def select(self) -> None:
        """Make it the current device, which `synchronize` and the memory statistics use."""
        if self.used in ("cuda", "xpu"):
            torch.accelerator.set_device_index(self.index)

    def synchronize(self) -> None:
        """Wait until the device has finished all its work. Accelerators run asynchronously."""
        if self.used != "cpu":
            torch.accelerator.synchronize()

    def reset_peak_memory(self) -> None:
        """Reset the peak that `peak_memory_bytes` returns."""
        if self.used in ("cuda", "xpu"):
            torch.accelerator.reset_peak_memory_stats()

    def peak_memory_bytes(self) -> int | None:
        """Return the peak memory of tensors on the device since `reset_peak_memory`; None on the CPU.

        torch keeps no peak for MPS, so for MPS it is the current memory.
        """
        if self.used == "cpu":
            return None
        if self.used == "mps":
            return torch.mps.current_allocated_memory()
        return torch.accelerator.max_memory_allocated()

    def memory_bytes_now(self) -> int | None:
        """Return the current memory of tensors on the device; None on the CPU."""
        if self.used == "cpu":
            return None
        return torch.mps.current_allocated_memory() if self.used == "mps" else torch.accelerator.memory_allocated()

    def driver_memory_bytes(self) -> int | None:
        """Return the memory that torch has reserved, including its cache of freed tensors; None on the CPU."""
        if self.used == "cpu":
            return None
        return torch.mps.driver_allocated_memory() if self.used == "mps" else torch.accelerator.memory_reserved()

    def memory_use(self) -> tuple[float, int, int]:
        """Return the fraction of the device's memory in use, its total bytes, and this process's; zeros on the CPU."""
        process_bytes, total = self.driver_memory_bytes(), self.memory_bytes
        if process_bytes is None or not total:
            return 0.0, 0, 0
        used = process_bytes
        if self.used in ("cuda", "xpu"):  # other processes may use memory, too
            free, _ = torch.get_device_module(self.used).mem_get_info(self.index)
            used = total - free
        return used / total, total, process_bytes


def resolve(requested: str, fallback: str, index: int = 0) -> Device:
    """Return the device to train on. The caller has to `select` it.

    Args:
        requested: the requested device: auto, cpu, mps, cuda or xpu.
        fallback: what to do if the device is absent: cpu (with a warning) or error.
        index: the device's index among those of its kind, i.e. the local rank.

    Raises:
        UserError: the device is absent, and fallback is error.
    """
    available = available_accelerator()
    if requested == "auto" or (requested == "accelerator" and available):
        return describe(requested, available or "cpu", index)
    if requested in ("cpu", available):
        return describe(requested, requested, index)
    reason = f"torch finds {available} here" if available else "torch finds no accelerator here"
    if fallback == "error":
        instead = f"Use device={available or 'cpu'} or device.fallback=cpu."
        raise UserError(f"device={requested}: not available ({reason}). {instead}")
    log.warning("device=%s is not available (%s): training on the CPU. run.json records it.", requested, reason)
    return describe(requested, "cpu")


def available_accelerator() -> str | None:
    """Return the accelerator that this torch supports and the machine has: cuda, mps or xpu; None: there is none."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator.type if accelerator is not None and accelerator.type in ACCELERATORS else None


def describe(requested: str, used: str, index: int = 0) -> Device:
    """Return a device with the properties that torch and the system report."""
    if used == "cpu":
        return Device(requested, used, cpu_name(), 1, psutil.virtual_memory().total)
    count = torch.accelerator.device_count()
    if used == "mps":
        return Device(requested, used, cpu_name(), count, torch.mps.recommended_max_memory())
    properties = torch.get_device_module(used).get_device_properties(index)
    return Device(requested, used, properties.name, count, properties.total_memory, index)


def describe_torch(device: torch.device) -> Device:
    """Return the Device for a torch.device. Kinds that Laptime doesn't know count as the CPU."""
    return describe("auto", device.type if device.type in ACCELERATORS else "cpu", device.index or 0)


def mps_fallback() -> bool:
    """Whether torch runs operators that MPS lacks on the CPU (PYTORCH_ENABLE_MPS_FALLBACK), silently and slower."""
    return os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK", "0") not in ("", "0")


def check_precision(precision: str, device: Device) -> None:
    """Refuse a precision that the device can't train in.

    Raises:
        UserError: float16 on the CPU, or bfloat16 on a GPU that lacks it.
    """
    if precision == "16-mixed" and device.used == "cpu":
        raise UserError("training.precision=16-mixed: not supported on the CPU. Use bf16-mixed or 32-true.")
    if (
        precision == "bf16-mixed"
        and device.used == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise UserError(
            f"training.precision=bf16-mixed: {device.name} does not support bfloat16. "
            "Use training.precision=16-mixed or 32-true."
        )
    if precision == "bf16-mixed" and device.used == "mps" and not mps_has_bfloat16():
        raise UserError(
            "training.precision=bf16-mixed: MPS supports bfloat16 from macOS 14 on. "
            "Use training.precision=16-mixed or 32-true."
        )


def mps_has_bfloat16() -> bool:
    return torch.backends.mps.is_macos_or_newer(14, 0)


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use, by affinity, CPU quota and SLURM's allocation."""
    cores = len(allowed_cores()) or os.cpu_count() or 1
    limits = (cores, container_cores(), slurm.allocated_cores())
    return max(1, int(min(limit for limit in limits if limit is not None)))


def cpu_name() -> str:
    """Return the name of the processor that the system reports."""
    try:
        if platform.system() == "Darwin":
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except (OSError, subprocess.SubprocessError):
        pass
    return platform.processor() or platform.machine()
