"""Times every epoch, and what it took of the CPU and the memory."""

import os
import time
from dataclasses import dataclass
from typing import Any

import psutil
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from laptime.lap.epoch_sums import Sums
from laptime.lap.timed_loader import TimedLoader
from laptime.machine import counters
from laptime.machine.device import Device
from laptime.machine.energy import EnergyMeter
from laptime.machine.memory import families


@dataclass(frozen=True)
class Lap:
    """One timed epoch of one rank.

    Attributes:
        epoch: from 0.
        is_warmup: whether it is left out of all timing figures.
        epoch_time_s: from asking for the first batch to the device-synchronised end of the last optimizer step; no
            validation, checkpointing or logging in it.
        num_samples: trained on by this rank, as the module counted them: a callback may leave some out.
        num_steps: optimizer steps that it took.
        data_wait_s: spent waiting for batches.
        rss_bytes: resident memory of the process and its children at the end.
        device_memory_bytes: peak of tensors on the device; None on the CPU.
        cpu_s: CPU seconds of the process and its children from the epoch's start until it was over.
        energy_joules: of this machine meanwhile; None: not measured, or by another rank.
        before, after: counters of the machine, read outside the timed part.
    """

    epoch: int
    is_warmup: bool
    epoch_time_s: float
    num_samples: int
    num_steps: int
    data_wait_s: float
    rss_bytes: int
    device_memory_bytes: int | None
    cpu_s: float
    energy_joules: float | None
    before: counters.Reading
    after: counters.Reading

    @property
    def samples_per_s(self) -> float:
        return self.num_samples / self.epoch_time_s

    @property
    def cpu_percent(self) -> float:
        """Of the process and its children; 100 is one core."""
        return 100 * self.cpu_s / self.epoch_time_s


class EpochTimer(Callback):
    """Makes a Lap of every complete epoch.

    Args:
        device: is synchronised at both ends of an epoch.
        warmup_epochs: epochs to leave out, counted from where this process starts: after a resume it is cold again.
        energy: measures this machine; None: another rank does.

    Attributes:
        lap: of the epoch that ended last; None where it was broken off.
        first_batch_at: `time.time()` when the first batch of all was asked for.
        train_started_at, train_ended_at: `time.perf_counter()` around all whole epochs, validation and checkpoints
            included.
        apart_s: seconds between these two in which something else was measured.
    """

    def __init__(self, device: Device, warmup_epochs: int, energy: EnergyMeter | None = None) -> None:
        self.device = device
        self.energy = energy
        self.warmup_epochs = warmup_epochs
        self.lap: Lap | None = None
        self.first_batch_at: float | None = None
        self.train_started_at: float | None = None
        self.train_ended_at: float | None = None
        self.apart_s = 0.0
        self._first_epoch = 0
        self._cpu_s = 0.0
        self._before: counters.Reading | None = None
        self._end: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first_epoch = trainer.current_epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.lap is not None:
            self.train_ended_at = time.perf_counter()
        self.lap = None
        self._end = None
        self.device.reset_peak_memory()
        self._before = counters.read([os.getpid()])
        self._cpu_s, _ = usage()
        if self.energy is not None:
            self.energy.begin()
        if self.train_started_at is None:
            self.train_started_at = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:
            self.device.synchronize()
            self._end = time.perf_counter()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._make_lap(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Without a validation set there is no validation; with one, the lap was made before it.
        if self.lap is None:
            self._make_lap(trainer)
        if self.lap is not None:
            self.train_ended_at = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.lap is not None:
            self.train_ended_at = time.perf_counter()

    def _make_lap(self, trainer: pl.Trainer) -> None:
        if self._end is None:  # some callback stopped the epoch before its last batch: it is no lap
            return
        loader = trainer.train_dataloader
        sums: Sums = trainer.lightning_module.train_sums  # type: ignore[assignment]
        assert isinstance(loader, TimedLoader) and self._before is not None
        energy_joules = self.energy.end() if self.energy is not None else None
        cpu_s, rss_bytes = usage()
        epoch_time_s = self._end - loader.started_at
        if self.first_batch_at is None:
            self.first_batch_at = time.time() - (time.perf_counter() - loader.started_at)
        self.lap = Lap(
            epoch=trainer.current_epoch,
            is_warmup=trainer.current_epoch - self._first_epoch < self.warmup_epochs,
            epoch_time_s=epoch_time_s,
            num_samples=sums.num_samples,
            num_steps=sums.num_batches,
            data_wait_s=loader.wait_s,
            rss_bytes=rss_bytes,
            device_memory_bytes=self.device.peak_memory_bytes(),
            cpu_s=cpu_s - self._cpu_s,
            energy_joules=energy_joules,
            before=self._before,
            after=counters.read([os.getpid()]),
        )


def usage() -> tuple[float, int]:
    """CPU seconds (user and system) and resident bytes of this process and its children, data workers included."""
    cpu_s, rss_bytes = 0.0, 0
    for pid in families([os.getpid()]):
        try:
            process = psutil.Process(pid)
            times, memory = process.cpu_times(), process.memory_info()
        except psutil.NoSuchProcess:
            continue
        cpu_s += times.user + times.system
        rss_bytes += memory.rss
    return cpu_s, rss_bytes
