"""Callbacks that parts add to a training: one queues work on the device, one holds memory, one removes randomness."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl
import torch

from laptime.machine.device import Device


class NothingRandom(pl.Callback):
    """Removes randomness from the network: dropout, and randomly skipped layers."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for module in pl_module.modules():
            for name in ("p", "drop_prob", "dropout"):
                is_random = name == "dropout" or type(module).__name__.startswith(("Dropout", "DropPath", "Stochastic"))
                if is_random and isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)


# Maximum number of matrix products to queue. A device's queue takes about a thousand before the program must wait.
_MAX_PRODUCTS = 100


class QueuedWork(pl.Callback):
    """Queues work on the device at the end of every odd epoch, just before Laptime synchronizes.

    Without a synchronization, the work is not in the epoch's time.

    Args:
        seconds: duration of the work.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._device = pl_module.device
        if self._device.type != "cpu":
            side = 1024
            self._number = _MAX_PRODUCTS + 1
            while self._number > _MAX_PRODUCTS and side < 16384:
                side *= 2
                self._matrix = torch.randn(side, side, device=self._device)
                self._product = torch.empty_like(self._matrix)
                self._multiply(3)
                torch.accelerator.synchronize()
                begin = time.perf_counter()
                self._multiply(5)
                torch.accelerator.synchronize()
                self._number = max(1, round(5 * self.seconds / (time.perf_counter() - begin)))
        self._is_due = False
        synchronize = Device.synchronize

        def queue_and_synchronize(device: Device) -> None:
            if self._is_due:
                self._is_due = False
                self._queue()
            synchronize(device)

        self._patch = patch.object(Device, "synchronize", queue_and_synchronize)
        self._patch.start()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._is_due = trainer.is_last_batch and trainer.current_epoch % 2 == 1

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._patch.stop()

    def _queue(self) -> None:
        if self._device.type == "cpu":
            FAKE_QUEUE.put(self.seconds)
        else:
            self._multiply(self._number)

    def _multiply(self, number: int) -> None:
        for _ in range(number):
            torch.mm(self._matrix, self._matrix, out=self._product)


class FakeQueue:
    """An asynchronous device: a sleeping thread that `synchronize` waits for."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def put(self, seconds: float) -> None:
        self._thread = threading.Thread(target=time.sleep, args=(seconds,))
        self._thread.start()

    def synchronize(self) -> None:
        if self._thread is not None:
            self._thread.join()


FAKE_QUEUE = FakeQueue()


@contextmanager
def fake_queue() -> Iterator[None]:
    """Give the CPU a queue inside the block."""
    with patch.object(Device, "synchronize", lambda device: FAKE_QUEUE.synchronize()):
        yield


class HeldMemory(pl.Callback):
    """Holds device memory while the run trains, and records torch's peak in every epoch.

    Args:
        num_bytes: number of bytes to hold; 0: only record.
    """

    PEAKS: list[int] = []

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        HeldMemory.PEAKS = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._held = torch.zeros(self.num_bytes, dtype=torch.uint8, device=pl_module.device)
        FAKE_MEMORY.held = self.num_bytes

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # as Laptime does
        HeldMemory.PEAKS.append(_peak(pl_module.device))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        del self._held
        FAKE_MEMORY.held = 0


def _peak(device: torch.device) -> int:
    if device.type == "cpu":
        return FAKE_MEMORY.peak()
    if device.type == "mps":
        return torch.mps.current_allocated_memory()
    return int(torch.get_device_module(device.type).max_memory_allocated())


class FakeMemory:
    """Device memory with 10 MB in use, plus the bytes that HeldMemory holds."""

    def __init__(self) -> None:
        self.held = 0

    def peak(self) -> int:
        return 10_000_000 + self.held


FAKE_MEMORY = FakeMemory()


@contextmanager
def fake_memory() -> Iterator[None]:
    """Give the CPU its own device memory inside the block, as an accelerator has."""
    with (
        patch.object(Device, "peak_memory_bytes", lambda device: FAKE_MEMORY.peak()),
        patch.object(Device, "memory_bytes_now", lambda device: FAKE_MEMORY.peak()),
    ):
        yield
