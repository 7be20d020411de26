"""Times forward passes by batch size. Several networks are timed in alternation, so that drift affects all equally."""

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from laptime.errors import UserError, is_out_of_memory
from laptime.lap.percentile import percentile
from laptime.lap.quality import Quality, assess
from laptime.machine.counters import delta, on_battery, snapshot
from laptime.machine.device import Device, usable_cores
from laptime.machine.environment import python_settings, settings, slowing_settings
from laptime.machine.hardware import require_free_memory

# Printed beside the results.
TIMED_TEXT = "one forward pass at a time, for a batch of tokens on the device, until the device is synchronized"
TIMED = (
    "one forward pass at a time, for a batch of normalized images on the device, until the device is synchronized; "
    "reading, normalizing and copying images is not included"
)
_ROUNDS = 5
_WARMUP_OF_LATER_ROUNDS = 3


class Disturbances:
    """Detects interference with a measurement: other processes, slowing settings, too many threads.

    The measurement starts when the object is created.

    Args:
        cpu_s: returns the CPU seconds of the measured process.
    """

    def __init__(self, cpu_s: Callable[[], float] = time.process_time) -> None:
        self._cpu_s = cpu_s
        self._before, self._own_s = snapshot(), cpu_s()

    def reasons(self) -> list[str]:
        """Return descriptions of the interference; empty: none was detected."""
        return list(self.quality().reasons)

    def quality(self) -> Quality:
        """Return the grade and its reasons."""
        cores = os.cpu_count() or 1
        meanwhile = delta(self._before, snapshot(), self._cpu_s() - self._own_s, cores)
        slowed = slowing_settings({**settings(), **python_settings()})
        oversubscribed = torch.get_num_threads() > usable_cores()
        return assess([meanwhile], [], cores, on_battery(), oversubscribed, slowing_settings=slowed)


Call = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Latency:
    """Latency at one batch size.

    Attributes:
        batch_size: images per call.
        num_calls: number of timed calls.
        p50_s, p95_s, p99_s: seconds per call; None: too few calls.
        samples_per_s: the number of images in all calls, divided by their total time. Calls don't overlap.
        round_p50_s: median of each round, in seconds.
    """

    batch_size: int
    num_calls: int
    p50_s: float
    p95_s: float | None
    p99_s: float | None
    samples_per_s: float
    round_p50_s: tuple[float, ...]


class Settings(Protocol):
    """The config group `latency` of evaluate and export."""

    @property
    def batch_sizes(self) -> list[int]: ...
    @property
    def num_calls(self) -> int: ...
    @property
    def warmup_calls(self) -> int: ...
    @property
    def time_limit_s(self) -> float: ...


def measure(
    networks: Mapping[str, Call], images: Tensor, batch_size: int, device: Device, settings: Settings
) -> dict[str, Latency]:
    """Time calls of several networks in alternating rounds. Warm-up calls before each round don't count.

    Args:
        networks: the networks by name.
        images: normalized images (N, C, H, W) on the device. They are repeated if a batch is larger.
        batch_size: images per call.
        device: is synchronized before and after every call.
        settings: number of calls and time limit.

    Returns:
        The latency of each network, by name.

    Raises:
        UserError: out of memory.
    """
    key = f"latency.batch_sizes={settings.batch_sizes}"
    if device.used == "cpu":
        num_bytes = batch_size * images[0].numel() * images.element_size()
        require_free_memory(key, num_bytes, f"images in a batch of {batch_size:,}", 1, "Use smaller batches.")
    try:
        batch = images[torch.arange(batch_size, device=images.device) % len(images)]
        times = _times(networks, batch, device, settings)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{key}: a batch of {batch_size:,} doesn't fit into memory. Use smaller batches.") from error
    return {name: _latency(batch_size, rounds) for name, rounds in times.items()}


def _times(
    networks: Mapping[str, Call], batch: Tensor, device: Device, settings: Settings
) -> dict[str, list[list[float]]]:
    times: dict[str, list[list[float]]] = {name: [] for name in networks}
    num_rounds = min(_ROUNDS, settings.num_calls)
    with torch.inference_mode():
        for number in range(num_rounds):
            num_calls = settings.num_calls // num_rounds + (number < settings.num_calls % num_rounds)
            warmup_calls = settings.warmup_calls
            if number:
                warmup_calls = min(warmup_calls, _WARMUP_OF_LATER_ROUNDS)
            for name, network in networks.items():
                start = time.perf_counter()
                limit = settings.time_limit_s / num_rounds
                for call in range(warmup_calls):  # the first may compile, so it doesn't count towards the limit
                    network(batch)
                    device.synchronize()
                    if call == 0:
                        start = time.perf_counter()
                    elif time.perf_counter() - start > limit:
                        break
                times[name].append(_timed(network, batch, device, num_calls, limit))
    return times


def _timed(network: Call, batch: Tensor, device: Device, num_calls: int, limit_s: float) -> list[float]:
    """Return the seconds of each call. There is at least one call, and none starts after the limit."""
    seconds: list[float] = []
    end = time.perf_counter() + limit_s
    while len(seconds) < num_calls:
        device.synchronize()
        start = time.perf_counter()
        network(batch)
        device.synchronize()
        stop = time.perf_counter()
        seconds.append(stop - start)
        if stop > end:
            break
    return seconds


def _latency(batch_size: int, rounds: list[list[float]]) -> Latency:
    seconds = [call_s for calls_s in rounds for call_s in calls_s]
    total = math.fsum(seconds)
    return Latency(
        batch_size,
        len(seconds),
        float(np.median(seconds)),
        percentile(seconds, 95),
        percentile(seconds, 99),
        batch_size * len(seconds) / total,
        tuple(float(np.median(calls_s)) for calls_s in rounds),
    )
