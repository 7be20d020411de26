"""The machine's hardware: sockets, caches, kinds of cores, frequencies and container limits. Loads no torch.

On Linux it is in /proc and /sys (Source: the kernel's Documentation/ABI/testing/sysfs-devices-system-cpu and
Documentation/admin-guide/cgroup-v1, cgroup-v2), on macOS in `sysctl hw`. What a system doesn't report is None.
"""

import os
import platform
import re
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil

from laptime.errors import UserError
from laptime.text import byte_size

_CPUS = "sys/devices/system/cpu"
# cgroup v1 reports "no limit" as the largest multiple of a page that a signed 64-bit number holds.
_NO_LIMIT_BYTES = 2**62


def allowed_cores() -> set[int]:
    """Return the cores that this process may use, by its CPU affinity; empty: the system has no affinity."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def machine(root: Path = Path("/")) -> dict[str, Any]:
    """Return the hardware and the container's limits as plain values.

    Args:
        root: folder that contains proc/ and sys/; tests use another one.

    Returns:
        A dictionary with num_sockets; num_performance_cores and num_efficiency_cores (physical; None if all are equal);
        caches, each {level, type, size_bytes, num}; governors, by name; frequency_min_hz and frequency_max_hz, the
        range of the governor; container: {num_cores, memory_bytes}, each None without a limit.
    """
    container = {"num_cores": container_cores(root), "memory_bytes": container_memory_bytes(root)}
    if root == Path("/") and platform.system() == "Darwin":
        return apple_silicon(_sysctl()) | _psutil_frequencies() | {"container": container}
    num_performance, num_efficiency = kinds_of_cores(root)
    frequency_min_hz, frequency_max_hz = frequencies_hz(root)
    return {
        "num_sockets": num_sockets(root),
        "num_performance_cores": num_performance,
        "num_efficiency_cores": num_efficiency,
        "caches": caches(root),
        "governors": governors(root),
        "frequency_min_hz": frequency_min_hz,
        "frequency_max_hz": frequency_max_hz,
        "container": container,
    }


def num_sockets(root: Path = Path("/")) -> int | None:
    """Return the number of processors on the mainboard."""
    packages = {read_small_file(cpu / "topology/physical_package_id") for cpu in _cpus(root)}
    return len([package for package in packages if package.isdecimal()]) or None  # -1: the firmware doesn't report it


def kinds_of_cores(root: Path = Path("/")) -> tuple[int | None, int | None]:
    """Return the numbers of physical performance cores and efficiency cores; None: all cores are equal, or not known.

    Intel's hybrid processors list both kinds. On ARM, the cores with the least capacity count as efficiency cores.
    """
    performance = _listed_cpus(root / "sys/devices/cpu_core/cpus")
    efficiency = _listed_cpus(root / "sys/devices/cpu_atom/cpus")
    if not (performance and efficiency):
        capacities = {cpu.name: _read_number(cpu / "cpu_capacity") for cpu in _cpus(root)}
        values = [capacity for capacity in capacities.values() if capacity is not None]
        if len(values) < len(capacities) or len(set(values)) < 2:
            return None, None
        efficiency = {name for name, capacity in capacities.items() if capacity == min(values)}
        performance = capacities.keys() - efficiency
    return _num_cores(root, performance), _num_cores(root, efficiency)


def caches(root: Path = Path("/")) -> list[dict[str, Any]] | None:
    """Return the kinds of caches, sorted by level: level, type (data, instruction, unified), size_bytes, num."""
    different: set[tuple[int, str, int, str]] = set()
    for index in root.glob(f"{_CPUS}/cpu[0-9]*/cache/index[0-9]*"):
        level = _read_number(index / "level")
        size = re.fullmatch(r"([0-9]{1,9})([KM])", read_small_file(index / "size"))
        if level is not None and size is not None:
            size_bytes = int(size[1]) * {"K": 2**10, "M": 2**20}[size[2]]
            sharing = read_small_file(index / "shared_cpu_list") or index.parents[1].name
            different.add((level, read_small_file(index / "type").lower(), size_bytes, sharing))
    return _cache_list(Counter((level, kind, size_bytes) for level, kind, size_bytes, _ in different))


def governors(root: Path = Path("/")) -> list[str] | None:
    """Return the frequency governors of the cores: performance, powersave, schedutil, ..."""
    return sorted({text for cpu in _cpus(root) if (text := read_small_file(cpu / "cpufreq/scaling_governor"))}) or None


def frequencies_hz(root: Path = Path("/")) -> tuple[int | None, int | None]:
    """Return the lowest and the highest frequency, over all cores, that the governor may choose."""
    lowest, highest = (
        [khz for cpu in _cpus(root) if (khz := _read_number(cpu / f"cpufreq/scaling_{end}_freq")) is not None]
        for end in ("min", "max")
    )
    return (1000 * min(lowest) if lowest else None), (1000 * max(highest) if highest else None)


def container_cores(root: Path = Path("/")) -> float | None:
    """Return the CPU quota of this process's cgroup and its parents, in cores; None: no quota."""
    v2 = [read_small_file(group / "cpu.max").split() for group in _cgroups(root)]
    v1_groups = _cgroups(root, "cpu")
    v1 = [[read_small_file(group / f"cpu.cfs_{name}_us") for name in ("quota", "period")] for group in v1_groups]
    quotas = [(_number(pair[0]), _number(pair[1])) for pair in v2 + v1 if len(pair) == 2]
    return min((quota / period for quota, period in quotas if quota and period), default=None)


def container_memory_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory limit of this process's cgroup and its parents; None: no limit."""
    files = [group / "memory.max" for group in _cgroups(root)]
    files += [group / "memory.limit_in_bytes" for group in _cgroups(root, "memory")]
    limits = [limit for path in files if (limit := _read_number(path)) is not None]
    return min((limit for limit in limits if limit < _NO_LIMIT_BYTES), default=None)


def available_memory_bytes() -> int:
    """Return the memory that a process can still allocate within the container's limit."""
    free = int(psutil.virtual_memory().available)
    limit = container_memory_bytes()
    return free if limit is None else min(free, limit)


def require_free_memory(key: str, num_bytes: int, of_what: str, num_ranks: int, instead: str) -> None:
    """Check that data fits into memory. Each rank of this machine needs two copies.

    Args:
        key: the setting that needs the data, with its value.
        num_bytes: the size of one copy.
        of_what: a description of the data; `{ranks}` in it is replaced by the number of ranks if there are several.
        instead: what the user should do instead.

    Raises:
        UserError: there is too little memory; names the needed and the free memory.
    """
    needed, free = 2 * num_ranks * num_bytes, available_memory_bytes()
    if needed > free:
        data = of_what.format(ranks=f" in each of {num_ranks} ranks" if num_ranks > 1 else "")
        raise UserError(
            f"{key}: needs {byte_size(needed, 'GB')} of memory, but only {byte_size(free, 'GB')} are free: "
            f"{byte_size(num_bytes, 'GB')} of {data}. {instead}"
        )


def apple_silicon(values: Mapping[str, int]) -> dict[str, Any]:
    """Return the values of `machine` for a Mac with Apple silicon.

    Performance level 0 has the fastest cores. Source: Apple, "Determining system capabilities".

    Args:
        values: the values of `sysctl hw`.
    """
    num_levels = values.get("hw.nperflevels", 1)
    kinds: Counter[tuple[int, str, int]] = Counter()
    for number in range(num_levels):
        level_values = {key.rpartition(".")[2]: value for key, value in values.items() if f".perflevel{number}." in key}
        num_cores, cores_per_l2 = level_values.get("physicalcpu", 0), level_values.get("cpusperl2", 0)
        num_l2 = num_cores // cores_per_l2 if cores_per_l2 else 0
        for key, level, kind, num in (
            ("l1icachesize", 1, "instruction", num_cores),
            ("l1dcachesize", 1, "data", num_cores),
            ("l2cachesize", 2, "unified", num_l2),
        ):
            if key in level_values and num:
                kinds[level, kind, level_values[key]] += num
    is_hybrid = num_levels > 1
    return {
        "num_sockets": values.get("hw.packages"),
        "num_performance_cores": values.get("hw.perflevel0.physicalcpu") if is_hybrid else None,
        "num_efficiency_cores": values.get("hw.perflevel1.physicalcpu") if is_hybrid else None,
        "caches": _cache_list(kinds),
        "governors": None,
    }


def sysctl_values(text: str) -> dict[str, int]:
    """Return the whole numbers in the output of macOS's `sysctl`, whose lines are `name: value`."""
    pairs = (line.partition(": ") for line in text.splitlines())
    return {name: int(value) for name, _, value in pairs if _number(value) is not None}


def _sysctl() -> dict[str, int]:
    try:
        command = ["/usr/sbin/sysctl", "hw"]
        return sysctl_values(subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout)
    except (OSError, subprocess.SubprocessError):
        return {}


def _psutil_frequencies() -> dict[str, Any]:
    """psutil reports Apple silicon's range in MHz, with 0 for an unknown end, and raises in virtual machines."""
    try:
        frequency = psutil.cpu_freq()
    except (OSError, RuntimeError, NotImplementedError):
        frequency = None
    return {
        "frequency_min_hz": round(1e6 * frequency.min) if frequency and frequency.min else None,
        "frequency_max_hz": round(1e6 * frequency.max) if frequency and frequency.max else None,
    }


def read_small_file(path: Path) -> str:
    """Return the stripped content of a small file; empty if it can't be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,19}", text) else None


def _read_number(path: Path) -> int | None:
    return _number(read_small_file(path))


def _cpus(root: Path) -> list[Path]:
    return sorted(root.glob(f"{_CPUS}/cpu[0-9]*"))


def _listed_cpus(path: Path) -> set[str]:
    """Return the names of the CPUs in a list that the kernel writes: `0-3,8`."""
    ranges = re.findall(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", read_small_file(path))
    return {f"cpu{number}" for first, last in ranges for number in range(int(first), int(last or first) + 1)}


def _num_cores(root: Path, cpus: Iterable[str]) -> int:
    """Return the number of physical cores. CPUs that are threads of one core count once."""
    return len({read_small_file(root / _CPUS / cpu / "topology/thread_siblings_list") or cpu for cpu in cpus})


def _cgroups(root: Path, controller: str = "") -> list[Path]:
    """Return the folders of this process's cgroup and its parents, the topmost first.

    In a container, the path may be that on the host. Then only the topmost folder exists, and is the container's.

    Args:
        controller: the controller of cgroup v1; empty: cgroup v2.
    """
    cgroup = ""
    for line in read_small_file(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(",") and path:
            cgroup = path
    parts = [part for part in cgroup.split("/") if part]
    if ".." in parts:  # outside of the folders that this process can see
        parts = []
    top = root / "sys/fs/cgroup" / controller
    return [top.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)]


def _cache_list(kinds: Mapping[tuple[int, str, int], int]) -> list[dict[str, Any]] | None:
    """Return the caches for run.json.

    Args:
        kinds: the number of caches by level, type and size_bytes.
    """
    rows = [
        {"level": level, "type": kind, "size_bytes": size_bytes, "num": num}
        for (level, kind, size_bytes), num in sorted(kinds.items())
    ]
    return rows or None
