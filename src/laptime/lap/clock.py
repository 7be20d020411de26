"""The clock of a lap. It depends on no training loop, model or data set."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from laptime.lap.count import NumTokens
from laptime.machine import counters
from laptime.machine.device import Device
from laptime.machine.energy import EnergyMeter
from laptime.machine.memory import process_trees

# Number of tensors kept during a lap; when there are more, they are combined.
_MAX_TENSORS = 512


@dataclass(frozen=True)
class Lap:
    """One timed lap of one rank: an epoch or a number of batches.

    Attributes:
        number: its number from 0; if it is an epoch, the epoch's number.
        is_warmup: whether it is left out of all timing figures.
        time_s: seconds from requesting the first batch to the device-synchronized end of the last optimizer step,
            pauses excluded.
        num_samples: samples of this rank; None: they can't be counted.
        num_tokens: tokens of this rank; None: it is not text, or they can't be counted.
        num_batches: number of requested batches.
        num_steps: optimizer steps; None: unknown.
        data_wait_s: time spent waiting for batches.
        apart_s: duration of the pauses, e.g. for validation or a checkpoint.
        loss: mean of the batches' losses; None: unknown.
        rss_bytes: resident memory of the process and its children at the end.
        device_memory_bytes: peak memory of tensors on the device; None on the CPU.
        cpu_s: CPU seconds of the process and its children, pauses excluded.
        all_cpu_s: CPU seconds of the process and its children, pauses included.
        energy_joules: energy that this machine used, pauses excluded; None: not measured, or by another rank.
        before, after: counters of the machine, read outside the timed part.
    """

    number: int
    is_warmup: bool
    time_s: float
    num_samples: int | None
    num_tokens: int | None
    num_batches: int
    num_steps: float | None
    data_wait_s: float
    apart_s: float
    loss: float | None
    rss_bytes: int
    device_memory_bytes: int | None
    cpu_s: float
    all_cpu_s: float
    energy_joules: float | None
    before: counters.Snapshot
    after: counters.Snapshot

    @property
    def samples_per_s(self) -> float | None:
        return None if self.num_samples is None else self.num_samples / self.time_s

    @property
    def cpu_percent(self) -> float:
        """CPU use of the process and its children; 100 is one core."""
        return 100 * self.cpu_s / self.time_s


class LapClock:
    """Times a lap, from requesting the first batch to the device-synchronized end of the last step.

    It can be paused for work that is not training. The device is synchronized at both ends of a pause. Nothing else
    waits for the device: losses and tokens may be tensors on it, which are read at the end of the lap.

    Args:
        device: is synchronized when the clock starts, stops and pauses.
        energy: measures this machine's energy; None: another rank measures it, or no rank does.
        resets_peak: whether each lap resets the device's peak memory statistics. False in trainings that Laptime only
            times, because the statistics belong to the user.

    Attributes:
        started_at: `time.perf_counter()` when this lap's first batch was requested; None: no lap is being timed.
        wait_s: seconds of this lap spent waiting for batches.
        apart_s: seconds of this lap in which the clock was paused.
        num_batches: number of batches requested in this lap so far.
    """

    def __init__(self, device: Device, energy: EnergyMeter | None = None, resets_peak: bool = True) -> None:
        self.device = device
        self.energy = energy
        self.resets_peak = resets_peak
        self.started_at: float | None = None
        self.wait_s = 0.0
        self.apart_s = 0.0
        self.num_batches = 0
        self._paused_at: float | None = None
        self._wait_from: float | None = None
        self._before: counters.Snapshot | None = None
        self._begin_count()

    def start(self, barrier: Callable[[], None] = lambda: None) -> None:
        """Start a lap; a lap that was not stopped is dropped.

        Args:
            barrier: waits for the other ranks, so that all start together.
        """
        if self.resets_peak:
            self.device.reset_peak_memory()
        self._before = counters.snapshot([os.getpid()])
        self._cpu_from, _ = usage()
        self._cpu_at_start = self._cpu_from
        self._cpu_s = 0.0
        self._joules: float | None = 0.0
        self._begin_count()
        self.wait_s = self.apart_s = 0.0
        self._wait_from = self._paused_at = None
        if self.energy is not None:
            self.energy.begin()
        self.device.synchronize()
        barrier()
        self.started_at = time.perf_counter()

    def _begin_count(self) -> None:
        self.num_batches = 0
        self._samples: int | None = 0
        self._tokens: NumTokens = 0
        self._token_tensors: list[Tensor] = []
        self._losses: list[Tensor] = []

    @property
    def is_running(self) -> bool:
        """Whether a lap is being timed; its clock may be paused."""
        return self.started_at is not None

    @property
    def is_paused(self) -> bool:
        return self._paused_at is not None

    def begin_wait(self) -> None:
        """Start to wait for data. Called when a batch is requested."""
        self._wait_from = time.perf_counter()

    def end_wait(self) -> None:
        """End the waiting for data. Called when the batch has arrived."""
        if self._wait_from is not None:
            self.wait_s += time.perf_counter() - self._wait_from
            self._wait_from = None

    def pause(self) -> None:
        """Stop the clock until `resume`, or for good if the lap is over."""
        if self.started_at is None or self._paused_at is not None:
            return
        self.device.synchronize()
        self._paused_at = time.perf_counter()
        self._wait_from = None
        cpu_s, _ = usage()
        self._cpu_s += cpu_s - self._cpu_from
        if self.energy is not None:
            joules = self.energy.end()
            self._joules = None if joules is None or self._joules is None else self._joules + joules

    def resume(self) -> None:
        """Continue after a pause."""
        if self._paused_at is None:
            return
        self._cpu_from, _ = usage()
        if self.energy is not None:
            self.energy.begin()
        self.device.synchronize()
        self.apart_s += time.perf_counter() - self._paused_at
        self._paused_at = None

    def count(self, samples: int | None, tokens: NumTokens = None, loss: Tensor | None = None) -> None:
        """Count a batch.

        Args:
            samples: number of samples in the batch; None: unknown, which makes the lap's number of samples unknown.
            tokens: number of tokens in the batch, likewise; a scalar tensor is read at the end of the lap.
            loss: mean loss of the batch, a scalar.
        """
        self.num_batches += 1
        self._samples = None if samples is None or self._samples is None else self._samples + samples
        if isinstance(tokens, Tensor):
            self._token_tensors.append(tokens)
            if len(self._token_tensors) > _MAX_TENSORS:
                self._token_tensors = [torch.stack(self._token_tensors).sum()]
        else:
            self._tokens = None if tokens is None or self._tokens is None else self._tokens + tokens
        if loss is not None:
            self._losses.append(loss)
            if len(self._losses) > _MAX_TENSORS:
                self._losses = [torch.cat([losses.reshape(-1) for losses in self._losses])]

    def stop(
        self,
        number: int,
        is_warmup: bool,
        num_samples: int | None = None,
        num_batches: int | None = None,
        num_steps: float | None = None,
        num_tokens: int | None = None,
    ) -> Lap:
        """End the lap at the start of the current pause, or now if the clock is not paused.

        Args:
            number, is_warmup: the values for `Lap`.
            num_samples, num_batches, num_tokens: the caller's own counts; None: use the sums of `count`.
            num_steps: optimizer steps of the lap; None: unknown.
        """
        self.pause()
        assert self.started_at is not None and self._paused_at is not None and self._before is not None
        cpu_s, rss_bytes = usage()
        tokens = self._tokens if self.num_batches else None  # the caller counts
        if tokens is not None and self._token_tensors:
            tokens = int(tokens) + sum(int(count) for count in self._token_tensors)
        loss = (
            float(torch.cat([losses.reshape(-1).float() for losses in self._losses]).mean()) if self._losses else None
        )
        lap = Lap(
            number=number,
            is_warmup=is_warmup,
            time_s=self._paused_at - self.started_at - self.apart_s,
            num_samples=self._samples if num_samples is None else num_samples,
            num_tokens=num_tokens if tokens is None else int(tokens),
            num_batches=self.num_batches if num_batches is None else num_batches,
            num_steps=num_steps,
            data_wait_s=self.wait_s,
            apart_s=self.apart_s,
            loss=loss,
            rss_bytes=rss_bytes,
            device_memory_bytes=self.device.peak_memory_bytes(),
            cpu_s=self._cpu_s,
            all_cpu_s=cpu_s - self._cpu_at_start,
            energy_joules=self._joules if self.energy is not None else None,
            before=self._before,
            after=counters.snapshot([os.getpid()]),
        )
        self.drop()
        return lap

    def drop(self) -> None:
        """Drop the lap, because it was aborted or has ended."""
        self.started_at = self._paused_at = self._wait_from = None


def usage() -> tuple[float, int]:
    """Return CPU seconds (user and system) and resident bytes of this process and its children, e.g. data workers."""
    cpu_s, rss_bytes = 0.0, 0
    for pid in process_trees([os.getpid()]):
        try:
            process = psutil.Process(pid)
            times, memory = process.cpu_times(), process.memory_info()
        except psutil.NoSuchProcess:
            continue
        cpu_s += times.user + times.system
        rss_bytes += memory.rss
    return cpu_s, rss_bytes
