"""How noisy the machine is right now: the same piece of work again and again, timed, and what else ran meanwhile.

The work is a matrix product of training size with one thread per usable core, as a run has them: such work waits for
its slowest thread, so another process on any one core shows, as it would in training.
"""

import os
import statistics
import time
from dataclasses import dataclass

import psutil
import torch

from laptime.lap.quality import Quality, assess, outliers
from laptime.machine import counters

# A lap is long against the clock ticks (10 ms) that the system counts CPU time in; each slice has its counters read.
_LAP_S = 0.25
_NUM_SLICES = 4
_NUM_BUSIEST = 5


@dataclass(frozen=True)
class Noise:
    """What the probe found.

    Attributes:
        quality: grade and reasons, by the rules that runs are graded by, with laps in place of epochs.
        num_threads: that the work was done with.
        lap_times_s: of the same work each.
        meanwhile: what `counters.delta` says of the whole probe.
        frequency_drop: from its fastest slice to its slowest, as a share; None: not known.
        busiest: name and used cores of the other processes that used most, those that this user may look at.
    """

    quality: Quality
    num_threads: int
    lap_times_s: tuple[float, ...]
    meanwhile: counters.Noise
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
    """Work for so many seconds, at least one.

    Args:
        seconds: of timed work.
        num_cores: that this process may use; as many threads work.
        battery: whether the machine runs on its battery.
    """
    threads_before = torch.get_num_threads()
    torch.set_num_threads(num_cores)
    try:
        left, right = torch.rand(512, 1024), torch.rand(1024, 1024)
        _time(left, right, 10)  # the threads start, the processor wakes up
        num_products = max(1, round(_LAP_S / min(_time(left, right, 1) for _ in range(10))))
        used_before, cpu_before = _used_by_others(), time.process_time()
        readings, own, times = [counters.snapshot()], [cpu_before], list[float]()
        for _ in range(_NUM_SLICES):
            until = time.perf_counter() + seconds / _NUM_SLICES
            while time.perf_counter() < until:
                times.append(_time(left, right, num_products))
            readings.append(counters.snapshot())
            own.append(time.process_time())
        used_after = _used_by_others()
    finally:
        torch.set_num_threads(threads_before)
    total_cores = os.cpu_count() or 1
    slices = [
        counters.delta(readings[each], readings[each + 1], own[each + 1] - own[each], total_cores)
        for each in range(_NUM_SLICES)
    ]
    meanwhile = counters.delta(readings[0], readings[-1], own[-1] - own[0], total_cores)
    frequencies = [each.frequency_hz for each in slices if each.frequency_hz]
    return Noise(
        quality=assess(slices, times, total_cores, battery, timed="laps"),
        num_threads=num_cores,
        lap_times_s=tuple(times),
        meanwhile=meanwhile,
        frequency_drop=1 - min(frequencies) / max(frequencies) if frequencies else None,
        busiest=_busiest(used_before, used_after, meanwhile.wall_s),
    )


def _time(left: torch.Tensor, right: torch.Tensor, num_products: int) -> float:
    """Wall seconds of so many matrix products; the CPU's are done when they return."""
    start = time.perf_counter()
    for _ in range(num_products):
        left @ right
    return time.perf_counter() - start


def _used_by_others() -> dict[tuple[int, float], tuple[str, float]]:
    """Name and CPU seconds of every process that this user may look at, by id and start; its own are left out."""
    own = psutil.Process()
    mine = {own.pid, *(child.pid for child in own.children(recursive=True))}
    found = {}
    for process in psutil.process_iter(["name", "cpu_times", "create_time"]):
        name, times, created = (process.info[key] for key in ("name", "cpu_times", "create_time"))
        if process.pid not in mine and times is not None:
            found[process.pid, created] = (name or "unnamed", times.user + times.system)
    return found


def _busiest(
    before: dict[tuple[int, float], tuple[str, float]], after: dict[tuple[int, float], tuple[str, float]], wall_s: float
) -> tuple[tuple[str, float], ...]:
    """Those that used 2% of a core and more, the busiest first. One that is new has used all it has since."""
    used = [
        # Names alone: command lines may hold secrets. Anything can stand in a name, what terminals act on too.
        (
            f"{''.join(letter if letter.isprintable() else '?' for letter in name)} (process {key[0]})",
            (cpu_s - before.get(key, ("", 0.0))[1]) / wall_s,
        )
        for key, (name, cpu_s) in after.items()
    ]
    return tuple(sorted((each for each in used if each[1] >= 0.02), key=lambda each: -each[1])[:_NUM_BUSIEST])
