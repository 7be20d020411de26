"""What parts plant into a training: work that the device has yet to do, and memory that is held."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl
import torch

from laptime.device import Device

# The side of the matrix whose products fill the device's queue.
_SIDE = 2048


class QueuedWork(pl.Callback):
    """In every odd epoch the device is given work for so many seconds, which the program does not wait for.

    Args:
        seconds: how long the device takes for it.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if pl_module.device.type == "cpu":
            return
        self._matrix = torch.randn(_SIDE, _SIDE, device=pl_module.device)
        self._product = torch.empty_like(self._matrix)
        self._multiply(3)
        torch.accelerator.synchronize()
        begin = time.perf_counter()
        self._multiply(20)
        torch.accelerator.synchronize()
        self._number = max(1, round(20 * self.seconds / (time.perf_counter() - begin)))

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_last_batch or trainer.current_epoch % 2 == 0:
            return
        if pl_module.device.type == "cpu":
            FAKE_QUEUE.put(self.seconds)
        else:
            self._multiply(self._number)

    def _multiply(self, number: int) -> None:
        for _ in range(number):
            torch.mm(self._matrix, self._matrix, out=self._product)


class FakeQueue:
    """A device that works behind the program's back: a thread that sleeps, which `synchronize` waits for."""

    def __init__(self) -> None:
        self._works: threading.Thread | None = None

    def put(self, seconds: float) -> None:
        self._works = threading.Thread(target=time.sleep, args=(seconds,))
        self._works.start()

    def synchronize(self) -> None:
        if self._works is not None:
            self._works.join()


FAKE_QUEUE = FakeQueue()


@contextmanager
def fake_queue() -> Iterator[None]:
    """The CPU has a queue within."""
    with patch.object(Device, "synchronize", lambda device: FAKE_QUEUE.synchronize()):
        yield


class HeldMemory(pl.Callback):
    """Holds so many bytes of the device's memory while the run trains, and notes torch's own peak of every epoch.

    Args:
        num_bytes: to hold; 0: it only looks.
    """

    PEAKS: list[int] = []

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        HeldMemory.PEAKS = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._held = torch.zeros(self.num_bytes, dtype=torch.uint8, device=pl_module.device)
        FAKE_MEMORY.held = self.num_bytes

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
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
    """A device that has something of its own, and what HeldMemory holds."""

    def __init__(self) -> None:
        self.held = 0

    def peak(self) -> int:
        return 10_000_000 + self.held


FAKE_MEMORY = FakeMemory()


@contextmanager
def fake_memory() -> Iterator[None]:
    """The CPU has memory of its own within, as an accelerator has."""
    with (
        patch.object(Device, "peak_memory_bytes", lambda device: FAKE_MEMORY.peak()),
        patch.object(Device, "memory_bytes_now", lambda device: FAKE_MEMORY.peak()),
    ):
        yield
