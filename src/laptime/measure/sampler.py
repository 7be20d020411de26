"""A light thread that looks every half second at the memory of all ranks of this machine and of its device."""

import logging
import threading
import time
from collections.abc import Sequence

import psutil

from laptime.machine.device import Device
from laptime.machine.hardware import container_memory_bytes
from laptime.machine.memory import process_trees

log = logging.getLogger(__name__)


class Sampler:
    """Samples from `start` to `stop`, in a thread of its own, which waits longer where a sample costs more.

    Args:
        pids: of the ranks on this machine; their children, data workers say, count with them.
        device: of this rank.
        interval_s: from one sample to the next, at least.
        warn_at: share of the memory, the machine's, the container's or the device's, from which on it warns, once.

    Attributes:
        peak_rss_bytes: the most that all of them had in memory at once, what they share for each; None: no sample.
        peak_device_memory_bytes: the most that tensors of this rank took on the device; None on the CPU.
        cost_s: CPU seconds of the thread.
        wall_s: how long it has run.
        num_samples: how often it looked.
    """

    # Of a core: what a sample may cost at most, or the next one comes later.
    _MOST_COST = 0.005

    def __init__(self, pids: Sequence[int], device: Device, interval_s: float, warn_at: float) -> None:
        self.pids = pids
        self.device = device
        self.interval_s = interval_s
        self.warn_at = warn_at
        self.peak_rss_bytes: int | None = None
        self.peak_device_memory_bytes: int | None = None
        self.cost_s = 0.0
        self.wall_s = 0.0
        self.num_samples = 0
        self._warned = False
        self._container_bytes = container_memory_bytes()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="laptime sampler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; nothing happens where it has ended."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def cost_fraction(self) -> float | None:
        """CPU time of the thread as a share of one core's."""
        return self.cost_s / self.wall_s if self.wall_s else None

    def _run(self) -> None:
        begun_at, cpu_before = time.perf_counter(), time.thread_time()
        while True:
            before = time.thread_time()
            self.sample()
            cost_s = time.thread_time() - before
            ended = self._stopped.wait(max(self.interval_s, cost_s / self._MOST_COST))
            self.wall_s = time.perf_counter() - begun_at
            self.cost_s = time.thread_time() - cpu_before
            if ended:
                return

    def sample(self) -> None:
        """Look once."""
        rss_bytes = sum(map(_rss_bytes, process_trees(self.pids)))
        self.peak_rss_bytes = max(rss_bytes, self.peak_rss_bytes or 0)
        on_device = self.device.memory_bytes_now()
        if on_device is not None:
            self.peak_device_memory_bytes = max(on_device, self.peak_device_memory_bytes or 0)
        self.num_samples += 1
        if not self._warned:
            self._warn(rss_bytes)

    def _warn(self, rss_bytes: int) -> None:
        memory = psutil.virtual_memory()
        uses = [(1 - memory.available / memory.total, memory.total, rss_bytes, "memory")]
        if self._container_bytes is not None:  # of which others in it take their part, unseen
            uses.append((rss_bytes / self._container_bytes, self._container_bytes, rss_bytes, "the container's memory"))
        uses.append((*self.device.memory_use(), f"the {self.device.used} device's memory"))
        for share, total, own, what in uses:
            if share >= self.warn_at:
                self._warned = True
                log.warning(
                    "%.0f%% of %s (%.1f GB) is in use, %.1f GB of it by this run: when it is full, a system swaps or "
                    "kills. A smaller training.batch_size, training.eval_batch_size or dataset.limit takes less.",
                    100 * share, what, total / 1e9, own / 1e9,
                )  # fmt: skip
                return


def _rss_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:  # gone since
        return 0
