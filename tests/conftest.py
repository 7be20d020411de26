"""Every test trains in a folder of its own; MNIST is unpacked once for all of them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Before torch is loaded: threads that wait busily for each other are a hundred times slower where others use the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# The machine may be busy, and what a test finds is to be found again: no deadline, and the same cases each time.
settings.register_profile("laptime", deadline=None, derandomize=True)
settings.load_profile("laptime")

# Modules that tests write; the list itself is tested in test_security.py.
OWN_MODULES = (
    "breaking", "odd", "own_adam", "same_weights", "elsewhere", "mixed", "leaky", "slow_rank", "with_batch_norm",
)  # fmt: skip
os.environ["LAPTIME_ALLOWED_TARGETS"] = ",".join(OWN_MODULES)

ROOT = Path(__file__).resolve().parents[1]
TRAIN = ROOT / "train.py"


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    return folder


@pytest.fixture(autouse=True)
def work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in OWN_MODULES:  # the next test may write another of that name
        sys.modules.pop(name, None)


@pytest.fixture
def train(work_folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the real command in a process of its own."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(TRAIN), *arguments],
            capture_output=True,
            text=True,
            cwd=work_folder,
            env=os.environ | environment,
            timeout=600,
        )

    return run


@pytest.fixture
def the_run(work_folder: Path) -> Callable[[], tuple[Path, dict[str, Any]]]:
    """The one run below the work folder: its directory and its record."""

    def find() -> tuple[Path, dict[str, Any]]:
        (path,) = work_folder.rglob("run.json")
        return path.parent, json.loads(path.read_text())

    return find


BROKEN = '''
from laptime.callbacks.epoch_timer import EpochTimer
from pytorch_lightning.callbacks import Callback
from pathlib import Path
import os
import signal


class BreakAt(Callback):
    """Fails in one rank, in the middle of an epoch, for epoch -1 before the first and for the epoch after the last in
    the test; once, where a file remembers it."""

    def __init__(self, rank: int, epoch: int, how: str, once: bool = False) -> None:
        self.rank, self.epoch, self.how, self.once = rank, epoch, how, once

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_rank == self.rank and trainer.current_epoch == self.epoch and batch_idx == 0:
            self.fail()

    def on_fit_start(self, trainer, module):
        if trainer.global_rank == self.rank and self.epoch == -1:
            self.fail()

    def on_test_start(self, trainer, module):
        if trainer.global_rank == self.rank and trainer.max_epochs == self.epoch:
            self.fail()

    def fail(self):
        if self.once:
            if Path("broken").exists():
                return
            Path("broken").touch()
        if self.how == "raise":
            raise ValueError("broken on purpose")
        os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.fixture
def breaking(work_folder, monkeypatch):
    """Overrides that make one rank fail in the middle of an epoch."""
    (work_folder / "breaking.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", str(work_folder), prepend=os.pathsep)
    monkeypatch.syspath_prepend(str(work_folder))
    quick = [
        "dataset.limit=2000", "training.batch_size=32", "logger=none", "device=cpu", "strategy.world_size=2",
    ]  # fmt: skip

    def overrides(rank: int, epoch: int, how: str, once: bool = False) -> list[str]:
        target = f"_target_:breaking.BreakAt,rank:{rank},epoch:{epoch},how:{how},once:{str(once).lower()}"
        return [*quick, "training.epochs=3", f"+callbacks.breaks={{{target}}}"]

    return overrides
