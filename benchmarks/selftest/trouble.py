"""Common trouble: the device runs out of memory, and the user presses Ctrl-C."""

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
_START_LIMIT_S, _EXIT_LIMIT_S = 60.0, 30.0


def out_of_memory(setting: Setting, notes: Notes) -> None:
    """Check that a training that does not fit fails with one line, and that the next one in this process works."""
    train(setting, "before", *SMALL, "model=mlp")  # loads libraries before the memory is limited
    too_large = [*SMALL, "model=mlp", "model.hidden_sizes=[64]", "training.batch_size=32"]
    hog = f"+callbacks.hog={{_target_:selftest.planted.HeldMemory,num_bytes:{4 * _ALLOWED_BYTES}}}"
    with _limited(setting):
        try:
            train(setting, "too-large", *too_large, hog)
            notes.check("a training that does not fit", False, "it trained without an error")
        except (TrainingFailed, UserError) as error:
            notes.check("a training that does not fit", "out of memory" in str(error), str(error).partition("\n")[0])
    gc.collect()
    record = train(setting, "after", *SMALL, "model=mlp")
    notes.check("the next training", record["status"] == "completed", record["status"])


@contextmanager
def _limited(setting: Setting) -> Iterator[None]:
    """Limit this process to a few hundred MB more of device memory; on the CPU, of address space."""
    if setting.kind == "cpu":
        if sys.platform != "linux":
            raise Skipped("the address space can only be limited on Linux")
        import resource

        soft_and_hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = psutil.Process().memory_info().vms + _ALLOWED_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, soft_and_hard[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, soft_and_hard)
        return
    module = torch.get_device_module(setting.kind)
    if not hasattr(module, "set_per_process_memory_fraction"):
        raise Skipped(f"this torch can't limit the memory of {setting.kind}")
    if setting.kind == "mps":
        used, total = torch.mps.driver_allocated_memory(), torch.mps.recommended_max_memory()
    else:
        used, total = torch.accelerator.memory_reserved(), module.get_device_properties(0).total_memory
    module.set_per_process_memory_fraction(min(1.0, (used + _ALLOWED_BYTES) / total))
    try:
        yield
    finally:
        module.set_per_process_memory_fraction(1.0)


def ctrl_c(setting: Setting, notes: Notes) -> None:
    """Check that Ctrl-C ends the command after the step and keeps its records, and that the run can be resumed."""
    folder = Path(setting.folder) / "interrupted"
    overrides = [*PLAIN, *SMALL, f"device={setting.kind}", "training.epochs=1000000"]
    with Path("ctrl-c.log").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "laptime", *overrides, f"hydra.run.dir='{folder}'"],
            stdout=output, stderr=output, start_new_session=True, env=_environment(),
        )  # fmt: skip
    try:
        deadline = time.monotonic() + _START_LIMIT_S
        while read_epochs(folder).empty:
            if process.poll() is not None or time.monotonic() > deadline:
                output = " ".join(Path("ctrl-c.log").read_text()[-300:].split())
                raise RuntimeError(f"no epoch was trained, exit code {process.poll()}: {output}")
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # to the whole process group, as a terminal does
        begin = time.monotonic()
        code = process.wait(timeout=_EXIT_LIMIT_S)
        notes.figure("Ctrl-C to the end of the command", time.monotonic() - begin, "s")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=_EXIT_LIMIT_S)
    notes.check("exit code", code == 130, str(code))
    status = read_record(folder)["status"]
    notes.check("status", status == "interrupted", status)
    num_epochs = int(read_epochs(folder)["epoch"].max()) + 1
    checkpoint = f"training.checkpoint='{folder}'"
    record = train(setting, "resumed", *SMALL, f"training.epochs={num_epochs + 2}", checkpoint)
    resumed = read_epochs(Path(record["run_dir"]))["epoch"]
    first = int(resumed.min())
    notes.check("it resumes after its last epoch", first == num_epochs, f"epoch {first} after {num_epochs} epochs")


def _environment() -> dict[str, str]:
    """An environment in which the command imports the same Laptime as this process."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
