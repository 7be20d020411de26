"""Small trainings that the parts compare."""

from pathlib import Path
from typing import Any

import laptime
from selftest.part import Setting

# Nothing beside the training; a part adds back what it looks at: the last override counts.
PLAIN = (
    "logger=none", "measure.breakdown=false", "measure.peak=false", "callbacks.progress_bar=null",
    "device.fallback=error", "security.allowed_targets=[selftest.planted]",
)  # fmt: skip
# Ten steps of 32 made-up images of 3 x 32 x 32. Plain SGD: Adam would turn rounding into whole steps.
SMALL = (
    "dataset=synthetic", "dataset.shape=[3,32,32]", "dataset.num_train=400", "dataset.num_test=64",
    "training.batch_size=32", "training.epochs=1", "optimizer=sgd", "optimizer.lr=0.01", "scheduler=none",
)  # fmt: skip
# How much a loss may differ from the CPU's, relative to it. TF32 in convolutions makes 4e-4 in five steps (see
# laptime.doctor.steps), 16-bit precisions 4e-3.
TOLERANCE, HALF_TOLERANCE = 5e-3, 3e-2


def train(setting: Setting, name: str, *overrides: str, device: str | None = None) -> dict[str, Any]:
    """Train once in this process.

    Args:
        name: of the run's directory, in the part's folder.
        device: another one than that of the test.

    Returns:
        The run's record.
    """
    folder = Path(setting.folder) / name
    return laptime.run([*PLAIN, f"device={device or setting.kind}", *overrides, f"hydra.run.dir='{folder}'"])


def loss_of(record: dict[str, Any]) -> float:
    return float(record["result"]["train_loss"])


def differs(loss: float, expected: float) -> float:
    """The relative difference of two losses; not a number where one of them is none."""
    return abs(loss - expected) / abs(expected)


def compared(loss: float, expected: float, tolerance: float) -> str:
    """Both losses in words."""
    difference = f"{differs(loss, expected):.1e}, {tolerance:g} allowed"
    return f"loss {loss:.5f}, on the CPU {expected:.5f}, relative difference {difference}"
