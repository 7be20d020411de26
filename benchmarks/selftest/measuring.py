"""Are the figures right? Memory, the clock of an epoch, the peak and how near a training comes to it."""

import time
from contextlib import nullcontext
from pathlib import Path

import torch

from laptime.machine import device as devices
from laptime.measure.peak import DTYPES
from laptime.record.files import read_epochs
from selftest.part import Notes, Setting
from selftest.planted import HeldMemory, fake_memory, fake_queue
from selftest.trainings import SMALL, train

_HELD_BYTES = 256 * 2**20
# Two looks at a device's memory, one after the other, may differ by so much.
_SMALL_BYTES = 8 * 2**20
_QUEUED_S = 0.4
# A device that multiplies faster than this is given matrices and a network that fill it.
_FAST_FLOP_PER_S = 2e12


def memory(setting: Setting, notes: Notes) -> None:
    """The record's peak is torch's own, and grows by what a callback holds."""
    held = "+callbacks.held={_target_:selftest.planted.HeldMemory,num_bytes:%d}"
    peaks = {}
    with fake_memory() if setting.rehearsal else nullcontext():
        for num_bytes in (0, _HELD_BYTES):
            record = train(setting, f"held-{num_bytes}", *SMALL, "training.epochs=2", held % num_bytes)
            peaks[num_bytes] = record["resources"]["peak_device_memory_bytes"]
            if peaks[num_bytes] is None:
                notes.check("resources.peak_device_memory_bytes", False, "null")
                return
            own = max(HeldMemory.PEAKS)
            notes.check(
                f"peak with {num_bytes / 2**20:.0f} MiB held",
                abs(peaks[num_bytes] - own) <= max(0.05 * own, _SMALL_BYTES),
                f"recorded {peaks[num_bytes] / 1e6:.1f} MB, torch's own {own / 1e6:.1f} MB",
            )
    more = peaks[_HELD_BYTES] - peaks[0]
    notes.check(
        "the peak grows by what is held",
        0.95 <= more / _HELD_BYTES <= 1.05,
        f"{more / 1e6:.1f} MB for {_HELD_BYTES / 1e6:.1f} MB",
    )
    notes.figure("device memory of a small training", peaks[0] / 1e6, "MB")


def synchronization(setting: Setting, notes: Notes) -> None:
    """An epoch's time includes work that the device has been given and has not done when the last step returns."""
    queued = f"+callbacks.queued={{_target_:selftest.planted.QueuedWork,seconds:{_QUEUED_S}}}"
    with fake_queue() if setting.rehearsal else nullcontext():
        train(setting, "queued", *SMALL, "model=logistic_regression", "training.epochs=7", queued)
    epochs = read_epochs(Path(setting.folder) / "queued").query("epoch > 0")
    planted = epochs[epochs["epoch"] % 2 == 1]["epoch_time_s"].tolist()
    plain = epochs[epochs["epoch"] % 2 == 0]["epoch_time_s"].tolist()
    more = min(planted) - min(plain)  # the epochs that were disturbed least
    # The device may be faster than when the work was timed, but not by half. Unsynchronized, nothing would be added.
    notes.check(
        "planted work is part of the epoch",
        more >= 0.5 * _QUEUED_S,
        f"{more:.3f} s longer with {_QUEUED_S} s of planted work, at least {0.5 * _QUEUED_S} s",
    )
    notes.figure("epoch without planted work", min(plain), "s")
    notes.figure("epoch with planted work", min(planted), "s")


def peak(setting: Setting, notes: Notes) -> None:
    """No product of large matrices is faster than the peak; and a training's share of it (MFU)."""
    device = devices.describe("auto", setting.kind)
    _flop_per_s(device, 1024, torch.float32, least_s=0.5)  # clocks that have slowed down take their time
    is_fast = _flop_per_s(device, 1024, torch.float32) > _FAST_FLOP_PER_S
    sides = (4096, 8192) if is_fast else (512, 1024)
    sizes = "model.hidden_sizes=[4096,4096,4096]" if is_fast else "model.hidden_sizes=[256,256]"
    data = ["dataset=synthetic", f"dataset.num_train={40000 if is_fast else 4000}", "dataset.num_test=100"]
    data += [f"training.batch_size={2048 if is_fast else 64}"]
    for precision, dtype in DTYPES.items():
        with notes.attempt(precision, refusals=True):
            devices.check_precision(precision, device)
            typed = [*data, sizes, "training.epochs=2", "measure.peak=true", "measure.breakdown=true"]
            found = train(setting, f"peak-{precision}", *typed, f"training.precision={precision}")["peak"]
            fastest = max(_flop_per_s(device, side, dtype) for side in sides)
            probed, share = found["matmul_flop_per_s"], found["mfu"]
            notes.check(
                f"{precision}: no product is faster than the peak",
                fastest <= 1.2 * probed,
                f"peak {probed / 1e12:.3g} TFLOP/s; products of side {sides[0]} and {sides[1]} reach "
                f"{fastest / 1e12:.3g} TFLOP/s, at most 1.2 times the peak",
            )
            notes.check(f"{precision}: MFU", share is not None and 0 < share <= 1, _percent(share))
            notes.figure(f"{precision}: peak of matrix products", probed / 1e12, "TFLOP/s")
            notes.figure(f"{precision}: copying", found["copy_bytes_per_s"] / 1e9, "GB/s")
            if share is not None:
                notes.figure(f"{precision}: MFU of an MLP", 100 * share, "%")


def _percent(share: float | None) -> str:
    return "null" if share is None else f"{share:.2%}, from 0% to 100%"


def _flop_per_s(device: devices.Device, side: int, dtype: torch.dtype, least_s: float = 0.0) -> float:
    """Of products of square matrices, one after the other, with one wait after each ten.

    Args:
        least_s: how long to go on at least.
    """
    a = torch.randn(side, side, device=device.torch_device).to(dtype)
    product = torch.empty_like(a)
    torch.mm(a, a, out=product)
    device.synchronize()
    begin, number = time.perf_counter(), 0
    while number == 0 or time.perf_counter() - begin < least_s:
        for _ in range(10):
            torch.mm(a, a, out=product)
        device.synchronize()
        number += 10
    return number * 2 * side**3 / (time.perf_counter() - begin)
