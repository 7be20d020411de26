"""Energy in joules. Zeus reads it from the counters of processors (RAPL), NVIDIA and AMD GPUs and Apple silicon.

Source: J. You, J.-W. Chung, M. Chowdhury: Zeus, NSDI 2023; https://ml.energy/zeus.
"""

import logging
import os
import platform
import sys
from pathlib import Path
from typing import Any

from laptime.errors import first_line
from laptime.extras import install_command, is_installed
from laptime.machine.device import Device

NOT_INSTALLED = f"needs Zeus: {install_command('zeus')}"
NO_COUNTER = "Zeus can't read any energy counter on this machine (CPU counters need root or zeusd)"

_WINDOW = "laptime"
# Where Zeus looks for the processor's counters: on the machine, and where a container mounts them.
_RAPL = (Path("/sys/class/powercap/intel-rapl"), Path("/zeus_sys/class/powercap/intel-rapl"))

# These counters are in millijoules. None of them includes another.
_APPLE_SILICON_COUNTERS = ("cpu_total_mj", "dram_mj", "gpu_mj", "gpu_sram_mj", "ane_mj")


class EnergyMeter:
    """Measures the energy of all processors of this machine and, if CUDA trains, of all GPUs that this process sees.

    Args:
        device: the device that trains.

    Attributes:
        missing: the reason why nothing is measured; None: energy is measured.
    """

    def __init__(self, device: Device) -> None:
        self.missing: str | None = None
        self._monitor: Any = None
        if not is_installed("zeus"):
            self.missing = NOT_INSTALLED
        elif not _may_have_counters(device):  # Zeus takes more than a second to load
            self.missing = NO_COUNTER
        else:
            self._monitor = self._make(device)

    def _make(self, device: Device) -> Any:
        logging.getLogger("zeus").setLevel(logging.ERROR)  # otherwise it warns of each absent counter
        try:
            from zeus.monitor import ZeusMonitor

            monitor = ZeusMonitor(gpu_indices=None if device.used == "cuda" else [])
            for file in _counter_files(monitor):
                file._wraparound_tracker = _NoTracker()
        except Exception as error:
            self.missing = f"Zeus can't measure here ({first_line(error)})"
            return None
        if not (monitor.gpu_indices or monitor.cpu_indices or monitor.soc_is_present):
            self.missing = NO_COUNTER
            return None
        return monitor

    def begin(self) -> None:
        """Start to measure. A measurement that has not ended is dropped."""
        if self._monitor is not None:
            self._monitor.begin_window(_WINDOW, sync_execution=False, restart=True)

    def end(self) -> float | None:
        """Return the joules since `begin`; None: nothing is measured."""
        if self._monitor is None:
            return None
        measured = self._monitor.end_window(_WINDOW, sync_execution=False)
        joules = list(measured.gpu_energy.values())
        for energies, name in ((measured.cpu_energy, "rapl_file"), (measured.dram_energy, "dram")):
            for index, value in (energies or {}).items():
                file = getattr(self._monitor.cpus.cpus[index], name, None)
                joules.append(value if value >= 0 or file is None else value + file.max_energy_range_uj / 1e6)
        soc = (getattr(measured.soc_energy, counter, None) for counter in _APPLE_SILICON_COUNTERS)
        joules += [millijoules / 1e3 for millijoules in soc if millijoules is not None]
        return float(sum(joules)) if joules else None


class _NoTracker:
    """Replaces the process in which Zeus watches each counter for overflow.

    That process would run during the measurement, and would outlive a rank that is killed. An epoch is short enough for
    one overflow at most, which shows as a negative difference.

    Zeus 0.16 starts the process at the first reading: https://github.com/ml-energy/zeus/issues/121
    """

    def get_num_wraparounds(self) -> int:
        return 0


def _counter_files(monitor: Any) -> list[Any]:
    """Return the counter files of the processors; empty if zeusd reads them."""
    files = (getattr(cpu, name, None) for cpu in monitor.cpus.cpus for name in ("rapl_file", "dram"))
    return [file for file in files if file is not None]


def _may_have_counters(device: Device) -> bool:
    """Whether Zeus could find a counter on this machine."""
    on_apple_silicon = sys.platform == "darwin" and platform.machine() == "arm64"
    return device.used == "cuda" or on_apple_silicon or "ZEUSD_SOCK_PATH" in os.environ or any(map(Path.is_dir, _RAPL))
