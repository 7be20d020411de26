"""Probes the noise of the machine: times the same work repeatedly, and reads the system's counters.

The work is a matrix product of training size with one thread per usable core, as in a run. It waits for its slowest
thread, so another process on any core slows it down, as it would slow training down.
"""

import os
import statistics
import time
from dataclasses import dataclass

import psutil
import torch

from laptime.lap.quality import Quality, assess, outliers
from laptime.machine import counters

# A lap is long compared with the clock ticks (10 ms) in which the system counts CPU time. The probe reads the counters
# after each slice.
_LAP_S = 0.25
_NUM_SLICES = 4
_NUM_BUSIEST = 5


@dataclass(frozen=True)
class Noise:
    """The result of the probe.

    Attributes:
        quality: grade and reasons, by the rules for runs, with laps instead of epochs.
        num_threads: number of threads that worked.
        lap_times_s: seconds of each lap; every lap does the same work.
        counters: `counters.delta` of the whole probe.
        frequency_drop: how far the frequency fell between two slices, as a fraction of the highest; None: not known.
        busiest: name and used cores of the busiest other processes that this user can see.
    """

    quality: Quality
    num_threads: int
    lap_times_s: tuple[float, ...]
    counters: counters.Noise
    frequency_drop: float | None
    busiest: tuple[tuple[str, float], ...]

    @property
    def median_s(self) -> float:
        return statistics.median(self.lap_times_s)

    @property
    def p95_over_median(self) -> float:
        return statistics.quantiles(self.lap_times_s, n=20, method="inclusive")[-1] / self.median_s

    @property
    def num_outliers(self) -> int:
        return len(outliers(self.lap_times_s))


def probe(seconds: float, num_cores: int, battery: bool | None = None) -> Noise:
    """Repeat the work and grade the noise.

    Args:
        seconds: duration of the timed work.
        num_cores: number of cores that this process can use; the work runs in as many threads.
        battery: whether the machine runs on battery.
    """
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_cores)
    try:
        left, right = torch.rand(512, 1024), torch.rand(1024, 1024)
        _time(left, right, 10)  # warm-up
        num_products = max(1, round(_LAP_S / min(_time(left, right, 1) for _ in range(10))))
        used_before, cpu_before = _used_by_others(), time.process_time()
        snapshots, cpu_times, times = [counters.snapshot()], [cpu_before], list[float]()
        for _ in range(_NUM_SLICES):
            until = time.perf_counter() + seconds / _NUM_SLICES
            while time.perf_counter() < until:
                times.append(_time(left, right, num_products))
            snapshots.append(counters.snapshot())
            cpu_times.append(time.process_time())
        used_after = _used_by_others()
    finally:
        torch.set_num_threads(threads_before)
    total_cores = os.cpu_count() or 1
    slices = [
        counters.delta(snapshots[index], snapshots[index + 1], cpu_times[index + 1] - cpu_times[index], total_cores)
        for index in range(_NUM_SLICES)
    ]
    whole = counters.delta(snapshots[0], snapshots[-1], cpu_times[-1] - cpu_times[0], total_cores)
    frequencies = [part.frequency_hz for part in slices if part.frequency_hz]
    return Noise(
        quality=assess(slices, times, total_cores, battery, timed="laps"),
        num_threads=num_cores,
        lap_times_s=tuple(times),
        counters=whole,
        frequency_drop=1 - min(frequencies) / max(frequencies) if frequencies else None,
        busiest=_busiest(used_before, used_after, whole.wall_s),
    )


def _time(left: torch.Tensor, right: torch.Tensor, num_products: int) -> float:
    """Return the wall seconds that num_products matrix products take on the CPU."""
    start = time.perf_counter()
    for _ in range(num_products):
        left @ right
    return time.perf_counter() - start


def _used_by_others() -> dict[tuple[int, float], tuple[str, float]]:
    """Return name and CPU seconds of the processes that this user can see, by id and start time.

    This process and its children are excluded.
    """
    this = psutil.Process()
    own_pids = {this.pid, *(child.pid for child in this.children(recursive=True))}
    used = {}
    for process in psutil.process_iter(["name", "cpu_times", "create_time"]):
        name, times, created = (process.info[key] for key in ("name", "cpu_times", "create_time"))
        if process.pid not in own_pids and times is not None:
            used[process.pid, created] = (name or "unnamed", times.user + times.system)
    return used


def _busiest(
    before: dict[tuple[int, float], tuple[str, float]], after: dict[tuple[int, float], tuple[str, float]], wall_s: float
) -> tuple[tuple[str, float], ...]:
    """Return the processes that used at least 2% of a core, busiest first. All CPU time of a new process counts."""
    used = [
        # Only names, because command lines may hold secrets. A name may hold control characters.
        (
            f"{''.join(letter if letter.isprintable() else '?' for letter in name)} (process {key[0]})",
            (cpu_s - before.get(key, ("", 0.0))[1]) / wall_s,
        )
        for key, (name, cpu_s) in after.items()
    ]
    busy = [(name, cores) for name, cores in used if cores >= 0.02]
    return tuple(sorted(busy, key=lambda process: -process[1])[:_NUM_BUSIEST])
