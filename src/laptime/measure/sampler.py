"""A thread that regularly samples the memory of all ranks on this machine and of the device."""

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
    """Samples memory from `start` to `stop`. The interval becomes longer if a sample takes much CPU time.

    Args:
        pids: the process ids of the ranks on this machine. Their children, e.g. data workers, are included.
        device: the device of this rank.
        interval_s: minimum time between samples.
        warn_at: the fraction of the machine's, container's or device's memory in use at which it warns once.

    Attributes:
        peak_rss_bytes: maximum of the sum over all processes; shared memory counts for each. None: no sample.
        peak_device_memory_bytes: maximum size of this rank's tensors on the device; None on the CPU.
        cost_s: CPU seconds of the thread.
        wall_s: seconds that the thread has run.
        num_samples: number of samples.
    """

    # Maximum CPU time per wall time of the thread.
    _MAX_COST_FRACTION = 0.005

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
        """End the thread, if it is running."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def cost_fraction(self) -> float | None:
        """The CPU time of the thread divided by its wall time."""
        return self.cost_s / self.wall_s if self.wall_s else None

    def _run(self) -> None:
        started_at, cpu_before = time.perf_counter(), time.thread_time()
        while True:
            before = time.thread_time()
            self.sample()
            cost_s = time.thread_time() - before
            ended = self._stopped.wait(max(self.interval_s, cost_s / self._MAX_COST_FRACTION))
            self.wall_s = time.perf_counter() - started_at
            self.cost_s = time.thread_time() - cpu_before
            if ended:
                return

    def sample(self) -> None:
        """Take one sample."""
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
        if self._container_bytes is not None:  # other processes in the container are not counted
            uses.append((rss_bytes / self._container_bytes, self._container_bytes, rss_bytes, "the container's memory"))
        uses.append((*self.device.memory_use(), f"the {self.device.used} device's memory"))
        for fraction, total, run_bytes, memory_name in uses:
            if fraction >= self.warn_at:
                self._warned = True
                log.warning(
                    "%.0f%% of %s (%.1f GB) is in use, %.1f GB of it by this run. If it is full, the system may swap "
                    "or kill the run. Reduce training.batch_size, training.eval_batch_size or dataset.limit.",
                    100 * fraction, memory_name, total / 1e9, run_bytes / 1e9,
                )  # fmt: skip
                return


def _rss_bytes(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:  # the process has ended
        return 0
