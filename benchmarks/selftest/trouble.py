"""What goes wrong in practice: the device's memory runs out, and the user presses Ctrl-C."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from laptime.errors import TrainingFailed, UserError
from laptime.record.files import read_epochs, read_record
from selftest.part import Notes, Setting, Skipped
from selftest.trainings import PLAIN, SMALL, train

_ALLOWED_BYTES = 300_000_000
_STARTED_WITHIN_S, _ENDS_WITHIN_S = 60.0, 30.0


def out_of_memory(setting: Setting, notes: Notes) -> None:
    """A training that does not fit says so in one line; the next one in the same process trains."""
    train(setting, "before", *SMALL, "model=mlp")  # whatever a first training loads is loaded
    too_large = [*SMALL, "model=mlp", "model.hidden_sizes=[64]", "training.batch_size=32"]
    hog = f"+callbacks.hog={{_target_:selftest.planted.HeldMemory,num_bytes:{4 * _ALLOWED_BYTES}}}"
    with _limited(setting):
        try:
            train(setting, "too-large", *too_large, hog)
            notes.check("a training that does not fit", False, "it trained")
        except (TrainingFailed, UserError) as error:
            notes.check("a training that does not fit", "out of memory" in str(error), str(error).partition("\n")[0])
    gc.collect()
    record = train(setting, "after", *SMALL, "model=mlp")
    notes.check("the next training", record["status"] == "completed", record["status"])


@contextmanager
def _limited(setting: Setting) -> Iterator[None]:
    """This process may take a few hundred MB of the device's memory more than now; on the CPU, of address space."""
    if setting.kind == "cpu":
        if sys.platform != "linux":
            raise Skipped("the address space can be limited on Linux only")
        import resource

        before = resource.getrlimit(resource.RLIMIT_AS)
        limit = psutil.Process().memory_info().vms + _ALLOWED_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)
        return
    module = torch.get_device_module(setting.kind)
    if not hasattr(module, "set_per_process_memory_fraction"):
        raise Skipped(f"this torch can't limit the memory of {setting.kind}")
    if setting.kind == "mps":
        taken, total = torch.mps.driver_allocated_memory(), torch.mps.recommended_max_memory()
    else:
        taken, total = torch.accelerator.memory_reserved(), module.get_device_properties(0).total_memory
    module.set_per_process_memory_fraction(min(1.0, (taken + _ALLOWED_BYTES) / total))
    try:
        yield
    finally:
        module.set_per_process_memory_fraction(1.0)


def ctrl_c(setting: Setting, notes: Notes) -> None:
    """Ctrl-C ends the command after the step, keeps what was measured, and the run can be resumed."""
    folder = Path(setting.folder) / "interrupted"
    typed = [*PLAIN, *SMALL, f"device={setting.kind}", "training.epochs=1000000"]
    with Path("ctrl-c.log").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "laptime", *typed, f"hydra.run.dir='{folder}'"],
            stdout=output, stderr=output, start_new_session=True, env=_environment(),
        )  # fmt: skip
    try:
        deadline = time.monotonic() + _STARTED_WITHIN_S
        while read_epochs(folder).empty:
            if process.poll() is not None or time.monotonic() > deadline:
                said = " ".join(Path("ctrl-c.log").read_text()[-300:].split())
                raise RuntimeError(f"no epoch was trained, exit code {process.poll()}: {said}")
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the whole group
        begin = time.monotonic()
        code = process.wait(timeout=_ENDS_WITHIN_S)
        notes.figure("Ctrl-C to the end of the command", time.monotonic() - begin, "s")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=_ENDS_WITHIN_S)
    notes.check("exit code", code == 130, str(code))
    status = read_record(folder)["status"]
    notes.check("status", status == "interrupted", status)
    num_epochs = int(read_epochs(folder)["epoch"].max()) + 1
    checkpoint = f"training.checkpoint='{folder}'"
    record = train(setting, "resumed", *SMALL, f"training.epochs={num_epochs + 2}", checkpoint)
    resumed = read_epochs(Path(record["run_dir"]))["epoch"]
    first = int(resumed.min())
    notes.check("it resumes where it ended", first == num_epochs, f"epoch {first}, {num_epochs} had been trained")


def _environment() -> dict[str, str]:
    """The command finds Laptime where this process does, also in a checkout that is not installed."""
    paths = [each for each in sys.path if each]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
