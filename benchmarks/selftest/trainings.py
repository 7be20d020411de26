"""Small trainings that the parts compare."""

from pathlib import Path
from typing import Any

import torch

import laptime
from laptime.record.files import CHECKPOINT_DIR, LAST_CHECKPOINT, PREVIOUS_CHECKPOINT
from selftest.part import Notes, Setting

# Nothing beside the training; a part adds back what it looks at: the last override counts. Nothing random within the
# network: the device's random numbers are not the CPU's.
PLAIN = (
    "logger=none", "measure.breakdown=false", "measure.peak=false", "callbacks.progress_bar=null",
    "device.fallback=error", "security.allowed_targets=[selftest.planted]",
    "+callbacks.nothing_random={_target_:selftest.planted.NothingRandom}",
)  # fmt: skip
# Ten steps of 32 made-up images of 3 x 32 x 32. Plain SGD: Adam would turn rounding into whole steps.
SMALL = (
    "dataset=synthetic", "dataset.shape=[3,32,32]", "dataset.num_train=400", "dataset.num_test=64",
    "training.batch_size=32", "training.epochs=1", "optimizer=sgd", "optimizer.lr=0.01", "scheduler=none",
)  # fmt: skip
# How much a loss may differ from the CPU's, relative to it: 16-bit precisions make 4e-3.
TOLERANCE, HALF_TOLERANCE = 5e-3, 3e-2
# How much the change of all weights may differ from the CPU's, relative to it: a mean loss over ten steps hardly
# depends on the weights. bfloat16 makes 0.03 to 0.06 on the CPU, gradients that are a tenth off 0.1, another seed 38.
# With float16 the first steps may be skipped until the scale of the gradients fits: each of ten is worth 0.1.
WEIGHTS_TOLERANCE, HALF_WEIGHTS_TOLERANCE, SCALED_WEIGHTS_TOLERANCE = 0.05, 0.2, 0.5


def train(setting: Setting, name: str, *overrides: str, device: str | None = None) -> dict[str, Any]:
    """Train once in this process.

    Args:
        name: of the run's directory, in the part's folder.
        device: another one than that of the test.

    Returns:
        The run's record.
    """
    torch.backends.cudnn.allow_tf32 = False  # convolutions rounded to 10 bits are no fault of the device's
    folder = Path(setting.folder) / name
    return laptime.run([*PLAIN, f"device={device or setting.kind}", *overrides, f"hydra.run.dir='{folder}'"])


def weights_apart(record: dict[str, Any], expected: dict[str, Any]) -> float:
    """How far the weights of two runs lie apart, relative to how far the expected run's last
    epoch has moved them."""
    start, then = (_weights(expected, name) for name in (PREVIOUS_CHECKPOINT, LAST_CHECKPOINT))
    return float((_weights(record, LAST_CHECKPOINT) - then).norm() / (then - start).norm())


def _weights(record: dict[str, Any], name: str) -> torch.Tensor:
    """All weights and floating-point buffers of a checkpoint, one after the other."""
    path = Path(record["run_dir"]) / CHECKPOINT_DIR / name
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    return torch.cat([value.flatten().double() for value in state.values() if value.is_floating_point()])


def check_learned(
    notes: Notes, what: str, record: dict[str, Any], expected: dict[str, Any], precision: str = "32-true"
) -> None:
    """Note whether a run has learned what another one has: its loss and the change of its weights.

    Args:
        expected: the other run's record, of the CPU where the device is tested.
        precision: of the run.
    """
    tolerance, allowed = (TOLERANCE, WEIGHTS_TOLERANCE)
    if precision != "32-true":
        scaled = precision == "16-mixed"
        tolerance, allowed = HALF_TOLERANCE, SCALED_WEIGHTS_TOLERANCE if scaled else HALF_WEIGHTS_TOLERANCE
    loss, then = (float(each["result"]["train_loss"]) for each in (record, expected))
    difference, apart = abs(loss - then) / abs(then), weights_apart(record, expected)
    notes.check(
        what,
        difference <= tolerance and apart <= allowed,
        f"loss {loss:.5f}, expected {then:.5f}, relative difference {difference:.1e}, {tolerance:g} allowed; "
        f"change of the weights off by {apart:.1e}, {allowed:g} allowed",
    )
