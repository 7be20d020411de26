"""Parts for tests of the self-test: one for each kind of end, and real parts on a device with a fault."""

import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from pytorch_lightning import Callback

from selftest import learning, measuring, runs
from selftest.part import Notes, Setting, Skipped


def passes(setting: Setting, notes: Notes) -> None:
    notes.check("one", True, "1 is 1")


def fails(setting: Setting, notes: Notes) -> None:
    notes.check("one", False, "1 is not 2")
    notes.check("two", True, "2 is 2")


def skips(setting: Setting, notes: Notes) -> None:
    raise Skipped("there is nothing to try")


def raises(setting: Setting, notes: Notes) -> None:
    _note(notes)
    raise RuntimeError("broken on purpose\nand a second line")


def is_killed(setting: Setting, notes: Notes) -> None:
    _note(notes)
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(setting: Setting, notes: Notes) -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(10000)"])
    Path("child.new").write_text(str(child.pid))
    Path("child.new").rename("child")
    time.sleep(10000)


def needs_a_package(setting: Setting, notes: Notes) -> None:
    notes.skip("one", "it is not tried here")
    import no_such_package  # noqa: F401


def needs_a_package_at_its_end(setting: Setting, notes: Notes) -> None:
    _note(notes)
    try:
        import no_such_package.within  # noqa: F401
    except ImportError as error:
        raise ValueError("it needs no_such_package.within") from error


def fails_on_a_busy_device(setting: Setting, notes: Notes) -> None:
    _make_busy()
    raise RuntimeError("out of memory")


def looks_at_a_busy_device(setting: Setting, notes: Notes) -> None:
    _make_busy()
    runs.memory_in_use(Setting("cuda", 1, False, setting.folder), notes)


def _make_busy() -> None:
    """Give this part's process a device with 80 GB, of which other processes use 60 GB and this one 1 GB."""
    from laptime.machine import device

    busy = device.Device("auto", "cpu", "busy", 1, 80 * 10**9)
    patch.object(device, "describe", lambda requested, used: busy).start()
    module = SimpleNamespace(get_device_properties=lambda index: None)
    patch.object(torch, "get_device_module", lambda kind: module).start()
    used_by_others = runs.used_by_others
    patch.object(runs, "used_by_others", lambda kind: used_by_others("cuda")).start()
    patch.object(device.Device, "memory_use", lambda device: (62 / 80, 80 * 10**9, 10**9)).start()


def _note(notes: Notes) -> None:
    notes.check("before", True, "it was noted")
    notes.figure("before", 1.5, "s")


def with_unsynchronized(setting: Setting, notes: Notes) -> None:
    """Test a device without synchronization."""
    with patch.object(measuring, "fake_queue", nullcontext):
        measuring.synchronization(setting, notes)


def with_never_synchronized(setting: Setting, notes: Notes) -> None:
    """Test an epoch that ends before the device is synchronized."""
    from laptime.lap.epoch_timer import EpochTimer

    on_train_batch_end = EpochTimer.on_train_batch_end

    def without_waiting(timer, trainer, *arguments):
        device = timer.clock.device
        timer.clock.device = SimpleNamespace(synchronize=lambda: None)
        on_train_batch_end(timer, trainer, *arguments)
        timer.clock.device = device

    with patch.object(EpochTimer, "on_train_batch_end", without_waiting):
        measuring.synchronization(setting, notes)


class Reseed(Callback):
    """Changes the random numbers from the first batch on. Weights and order are drawn before and stay."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == 0:
            torch.manual_seed(123456)


def models_with_other_random_numbers(setting: Setting, notes: Notes) -> None:
    trained = learning.train

    def train(*arguments, device=None):
        if device is None:
            arguments = (*arguments, "+callbacks.reseed={_target_:selftest_parts.Reseed}")
        return trained(*arguments, device=device)

    with patch.object(learning, "train", train):
        learning.models(setting, notes)


def with_memory_of_one_epoch(setting: Setting, notes: Notes) -> None:
    """Test a recorded peak without the memory that a callback holds."""
    from laptime.machine.device import Device
    from selftest.planted import FAKE_MEMORY

    FAKE_MEMORY.held = 0
    without_fake = patch.object(measuring, "fake_memory", nullcontext)
    with without_fake, patch.object(Device, "peak_memory_bytes", lambda device: 10_000_000):
        measuring.memory(setting, notes)


def with_wrong_weights(setting: Setting, notes: Notes) -> None:
    """Start each training except the first one from other weights."""
    trained = learning.train
    count = 0

    def train(*arguments, **settings):
        nonlocal count
        count += 1
        if count > 1:
            arguments = (*arguments, "seed=2")
        return trained(*arguments, **settings)

    with patch.object(learning, "train", train), patch.object(learning, "DTYPES", ("32-true",)):
        learning.precisions(setting, notes)
