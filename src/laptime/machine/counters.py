"""System counters, read before and after a timed part to show the machine's other activity.

Linux has most of them in /proc and /sys. On other systems psutil has some. Counters that a system lacks are None.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil

from laptime.machine.hardware import read_small_file

_HZ = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """The machine's counters at one moment.

    Attributes:
        at_s: the value of `time.perf_counter()`.
        busy_s: CPU seconds that all processes have used on all cores since boot.
        steal_s: CPU seconds that the hypervisor gave to other virtual machines since boot (CPU steal).
        throttled_s: seconds in which the container's CPU quota throttled it.
        num_swapped_pages: pages swapped in and out since boot.
        num_switches: involuntary context switches of the given processes.
        frequency_hz: mean of the cores' current frequencies.
        temperature_celsius: current value of the hottest sensor.
        load: load average of the last minute.
        cores: busy seconds and all seconds of each core since boot.
    """

    at_s: float
    busy_s: float | None
    steal_s: float | None
    throttled_s: float | None
    num_swapped_pages: int | None
    num_switches: int | None
    frequency_hz: float | None
    temperature_celsius: float | None
    load: float | None
    cores: tuple[tuple[float, float], ...] = ()


def snapshot(processes: Sequence[int] = (), root: Path = Path("/")) -> Snapshot:
    """Read all counters.

    Args:
        processes: ids of the processes whose involuntary context switches are counted.
        root: folder that contains proc/ and sys/; tests use another one.
    """
    cpu_lines = [line for line in read_small_file(root / "proc/stat").splitlines() if line.startswith("cpu")]
    busy_s, steal_s = _cpu_times(cpu_lines, root)
    return Snapshot(
        at_s=time.perf_counter(),
        busy_s=busy_s,
        steal_s=steal_s,
        throttled_s=_throttled_s(root),
        num_swapped_pages=_num_swapped_pages(root),
        num_switches=_num_switches(processes, root),
        frequency_hz=_mean(_frequencies(root)),
        temperature_celsius=max(_temperatures(root), default=None),
        load=_first(lambda: float((root / "proc/loadavg").read_text().split()[0]), lambda: os.getloadavg()[0]),
        cores=_core_times(cpu_lines, root),
    )


def percent_by_core(before: Snapshot, after: Snapshot) -> list[float]:
    """Return how busy each core was between two snapshots, in percent, with any process; empty: not known."""
    if len(before.cores) != len(after.cores):
        return []
    differences = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(before.cores, after.cores, strict=True)]
    return [100 * busy_s / total_s if total_s > 0 else 0.0 for busy_s, total_s in differences]


@dataclass(frozen=True)
class Noise:
    """The machine's activity between two snapshots. Figures that this system doesn't know are None.

    Attributes:
        wall_s: seconds between the snapshots.
        other_cores: number of cores that other processes kept busy.
        steal_fraction: CPU steal, as a fraction of all cores' time.
        throttled_fraction: the fraction of wall time in which the container's CPU quota throttled it.
        num_swapped_pages: pages swapped in and out.
        involuntary_switches_per_s: involuntary context switches of the given processes.
        frequency_hz, temperature_celsius: the values at the second snapshot.
    """

    wall_s: float
    other_cores: float | None = None
    steal_fraction: float | None = None
    throttled_fraction: float | None = None
    num_swapped_pages: int | None = None
    involuntary_switches_per_s: float | None = None
    frequency_hz: float | None = None
    temperature_celsius: float | None = None


def delta(before: Snapshot, after: Snapshot, own_cpu_s: float | None, num_cores: int) -> Noise:
    """Return the machine's activity between two snapshots.

    Args:
        own_cpu_s: CPU seconds that the run itself used meanwhile; None: not known.
        num_cores: number of cores of the machine.
    """
    wall_s = after.at_s - before.at_s
    busy_s = _difference(before.busy_s, after.busy_s)
    other_cores = None if busy_s is None or own_cpu_s is None else max(0.0, busy_s - own_cpu_s) / wall_s
    steal_s = _difference(before.steal_s, after.steal_s)
    throttled_s = _difference(before.throttled_s, after.throttled_s)
    switches = _difference(before.num_switches, after.num_switches)
    switches = None if switches is None else max(0, switches)  # counts of ended threads are missing
    return Noise(
        wall_s=wall_s,
        other_cores=other_cores,
        steal_fraction=None if steal_s is None else steal_s / (wall_s * num_cores),
        throttled_fraction=None if throttled_s is None else throttled_s / wall_s,
        num_swapped_pages=_difference(before.num_swapped_pages, after.num_swapped_pages),
        involuntary_switches_per_s=None if switches is None else switches / wall_s,
        frequency_hz=after.frequency_hz,
        temperature_celsius=after.temperature_celsius,
    )


def on_battery(root: Path = Path("/")) -> bool | None:
    """Whether the machine runs on battery, which slows many processors down; None: no battery, or not known."""
    supplies = _glob(root, "sys/class/power_supply/*")
    if supplies:
        kinds = {path: read_small_file(path / "type") for path in supplies}
        mains = [read_small_file(path / "online") for path, kind in kinds.items() if kind in ("Mains", "USB")]
        return "1" not in mains if "Battery" in kinds.values() and mains else None
    if root != Path("/"):
        return None
    battery = _first(lambda: psutil.sensors_battery())
    return None if battery is None else not battery.power_plugged


def _cpu_times(lines: Sequence[str], root: Path) -> tuple[float | None, float | None]:
    try:
        busy_s, _, steal_s = _parse_cpu_line(lines[0])
        return busy_s, steal_s
    except (ValueError, IndexError):
        times = _first(lambda: psutil.cpu_times()) if root == Path("/") else None
        return (None if times is None else times.user + times.system + getattr(times, "nice", 0.0)), None


def _core_times(lines: Sequence[str], root: Path) -> tuple[tuple[float, float], ...]:
    try:
        cores = tuple(_parse_cpu_line(line)[:2] for line in lines[1:])
    except ValueError:
        cores = ()
    if cores or root != Path("/"):
        return cores
    times = _first(lambda: psutil.cpu_times(percpu=True))
    return tuple((sum(core) - core.idle, sum(core)) for core in times or [])


def _parse_cpu_line(line: str) -> tuple[float, float, float]:
    """Return the busy, all and stolen seconds in a line `cpu...` of /proc/stat."""
    user, nice, system, idle, iowait, irq, softirq, steal = (int(field) / _HZ for field in line.split()[1:9])
    busy_s = user + nice + system + irq + softirq
    return busy_s, busy_s + idle + iowait + steal, steal


def _throttled_s(root: Path) -> float | None:
    v2 = _counters(root / "sys/fs/cgroup/cpu.stat").get("throttled_usec")
    if v2 is not None:
        return v2 / 1e6
    v1 = _counters(root / "sys/fs/cgroup/cpu/cpu.stat").get("throttled_time")
    return None if v1 is None else v1 / 1e9


def _num_swapped_pages(root: Path) -> int | None:
    counters = _counters(root / "proc/vmstat")
    if "pswpin" in counters:
        return counters["pswpin"] + counters.get("pswpout", 0)
    return None


def _num_switches(processes: Iterable[int], root: Path) -> int | None:
    """Count involuntary context switches of all threads. A process's own status file has only its first thread's."""
    total, is_known = 0, False
    for process in processes:
        folder = root / f"proc/{process}"
        for status in [*folder.glob("task/*/status")] or [folder / "status"]:
            for line in read_small_file(status).splitlines():
                name, _, value = line.partition(":")
                if name == "nonvoluntary_ctxt_switches" and value.strip().isdecimal():
                    total, is_known = total + int(value), True
    return total if is_known else None


def _frequencies(root: Path) -> list[float]:
    files = _glob(root, "sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")
    frequencies = [1e3 * float(text) for path in files if (text := read_small_file(path)).isdecimal()]
    if frequencies:
        return frequencies
    lines = [line.partition(":") for line in read_small_file(root / "proc/cpuinfo").splitlines()]
    return [1e6 * float(value) for name, _, value in lines if name.strip() == "cpu MHz"]


def _temperatures(root: Path) -> list[float]:
    files = [*_glob(root, "sys/class/thermal/thermal_zone*/temp"), *_glob(root, "sys/class/hwmon/hwmon*/temp*_input")]
    temperatures = [int(text) / 1e3 for path in files if (text := read_small_file(path)).lstrip("-").isdecimal()]
    return [celsius for celsius in temperatures if 0 < celsius < 150]  # sensors that are absent have senseless values


def _counters(path: Path) -> dict[str, int]:
    pairs = [line.split() for line in read_small_file(path).splitlines()]
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _glob(root: Path, pattern: str) -> list[Path]:
    return sorted(root.glob(pattern))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _first(*readers: Callable[[], T]) -> T | None:
    """Return the result of the first function that this system supports."""
    for read in readers:
        try:
            return read()
        except (OSError, ValueError, IndexError, AttributeError, NotImplementedError):
            continue
    return None


def _difference(before: Any, after: Any) -> Any:
    return None if before is None or after is None else after - before
