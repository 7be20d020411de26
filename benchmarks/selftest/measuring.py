"""Check measured figures: device memory, epoch times, the peak, and MFU."""

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
# Two consecutive readings of a device's memory may differ by this much.
_MEMORY_TOLERANCE_BYTES = 8 * 2**20
_QUEUED_S = 0.4
# A faster device gets larger matrices and a larger network, so that they use it fully.
_FAST_FLOP_PER_S = 2e12


def memory(setting: Setting, notes: Notes) -> None:
    """Check that the recorded peak is torch's, and that it grows by the memory that a callback holds."""
    held = "+callbacks.held={_target_:selftest.planted.HeldMemory,num_bytes:%d}"
    peaks = {}
    with fake_memory() if setting.rehearsal else nullcontext():
        for num_bytes in (0, _HELD_BYTES):
            record = train(setting, f"held-{num_bytes}", *SMALL, "training.epochs=2", held % num_bytes)
            peaks[num_bytes] = record["resources"]["peak_device_memory_bytes"]
            if peaks[num_bytes] is None:
                notes.check("resources.peak_device_memory_bytes", False, "null")
                return
            torch_peak = max(HeldMemory.PEAKS)
            notes.check(
                f"peak with {num_bytes / 2**20:.0f} MiB held",
                abs(peaks[num_bytes] - torch_peak) <= max(0.05 * torch_peak, _MEMORY_TOLERANCE_BYTES),
                f"recorded {peaks[num_bytes] / 1e6:.1f} MB, torch reports {torch_peak / 1e6:.1f} MB",
            )
    growth = peaks[_HELD_BYTES] - peaks[0]
    notes.check(
        "the peak grows by the held memory",
        0.95 <= growth / _HELD_BYTES <= 1.05,
        f"{growth / 1e6:.1f} MB for {_HELD_BYTES / 1e6:.1f} MB",
    )
    notes.figure("device memory of a small training", peaks[0] / 1e6, "MB")


def synchronization(setting: Setting, notes: Notes) -> None:
    """Check that an epoch's time includes work that is still in the device's queue when the last step returns."""
    queued = f"+callbacks.queued={{_target_:selftest.planted.QueuedWork,seconds:{_QUEUED_S}}}"
    with fake_queue() if setting.rehearsal else nullcontext():
        train(setting, "queued", *SMALL, "model=logistic_regression", "training.epochs=7", queued)
    epochs = read_epochs(Path(setting.folder) / "queued").query("epoch > 0")
    planted = epochs[epochs["epoch"] % 2 == 1]["epoch_time_s"].tolist()
    plain = epochs[epochs["epoch"] % 2 == 0]["epoch_time_s"].tolist()
    growth = min(planted) - min(plain)  # the least disturbed epochs
    # The device may be faster now than when the work was timed, but not twice as fast. Without synchronization the
    # epoch would not become longer.
    notes.check(
        "an epoch includes queued work",
        growth >= 0.5 * _QUEUED_S,
        f"{growth:.3f} s longer with {_QUEUED_S} s of queued work, at least {0.5 * _QUEUED_S} s",
    )
    notes.figure("epoch without queued work", min(plain), "s")
    notes.figure("epoch with queued work", min(planted), "s")


def peak(setting: Setting, notes: Notes) -> None:
    """Check that no product of large matrices is faster than the peak, and that MFU is a fraction of it."""
    device = devices.describe("auto", setting.kind)
    _flop_per_s(device, 1024, torch.float32, min_s=0.5)  # an idle device takes a while to raise its clock
    is_fast = _flop_per_s(device, 1024, torch.float32) > _FAST_FLOP_PER_S
    sides = (4096, 8192) if is_fast else (512, 1024)
    sizes = "model.hidden_sizes=[4096,4096,4096]" if is_fast else "model.hidden_sizes=[256,256]"
    data = ["dataset=synthetic", f"dataset.num_train={40000 if is_fast else 4000}", "dataset.num_test=100"]
    data += [f"training.batch_size={2048 if is_fast else 64}"]
    for precision, dtype in DTYPES.items():
        with notes.attempt(precision, refusals=True):
            devices.check_precision(precision, device)
            overrides = [*data, sizes, "training.epochs=2", "measure.peak=true", "measure.breakdown=true"]
            recorded = train(setting, f"peak-{precision}", *overrides, f"training.precision={precision}")["peak"]
            fastest = max(_flop_per_s(device, side, dtype) for side in sides)
            probed, mfu = recorded["matmul_flop_per_s"], recorded["mfu"]
            notes.check(
                f"{precision}: no product is faster than the peak",
                fastest <= 1.2 * probed,
                f"peak {probed / 1e12:.3g} TFLOP/s; products of side {sides[0]} and {sides[1]} reach "
                f"{fastest / 1e12:.3g} TFLOP/s, at most 1.2 times the peak",
            )
            notes.check(f"{precision}: MFU", mfu is not None and 0 < mfu <= 1, _percent(mfu))
            notes.figure(f"{precision}: peak of matrix products", probed / 1e12, "TFLOP/s")
            notes.figure(f"{precision}: copy bandwidth", recorded["copy_bytes_per_s"] / 1e9, "GB/s")
            if mfu is not None:
                notes.figure(f"{precision}: MFU of an MLP", 100 * mfu, "%")


def _percent(fraction: float | None) -> str:
    return "null" if fraction is None else f"{fraction:.2%}, must be from 0% to 100%"


def _flop_per_s(device: devices.Device, side: int, dtype: torch.dtype, min_s: float = 0.0) -> float:
    """FLOP/s of products of square matrices, with a synchronization after every ten.

    Args:
        min_s: minimum duration of the measurement, in seconds.
    """
    a = torch.randn(side, side, device=device.torch_device).to(dtype)
    product = torch.empty_like(a)
    torch.mm(a, a, out=product)
    device.synchronize()
    begin, number = time.perf_counter(), 0
    while number == 0 or time.perf_counter() - begin < min_s:
        for _ in range(10):
            torch.mm(a, a, out=product)
        device.synchronize()
        number += 10
    return number * 2 * side**3 / (time.perf_counter() - begin)
