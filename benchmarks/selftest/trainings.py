"""Small trainings, and the comparison of two of them."""

from pathlib import Path
from typing import Any

import torch

import laptime
from laptime.record.files import CHECKPOINT_DIR, LAST_CHECKPOINT, PREVIOUS_CHECKPOINT
from selftest.part import Notes, Setting

# Only the training. A part switches on again what it tests, because the last override counts. Nothing random in the
# network, because devices draw other random numbers than the CPU.
PLAIN = (
    "logger=none", "measure.breakdown=false", "measure.peak=false", "callbacks.progress_bar=null",
    "device.fallback=error", "security.allowed_targets=[selftest.planted]",
    "+callbacks.nothing_random={_target_:selftest.planted.NothingRandom}",
)  # fmt: skip
# Ten steps of 32 synthetic images of 3 x 32 x 32. Plain SGD, because Adam turns rounding errors into whole steps.
SMALL = (
    "dataset=synthetic", "dataset.shape=[3,32,32]", "dataset.num_train=400", "dataset.num_test=64",
    "training.batch_size=32", "training.epochs=1", "optimizer=sgd", "optimizer.lr=0.01", "scheduler=none",
)  # fmt: skip
# Largest relative difference between a loss and the CPU's. With 16-bit precisions it is about 4e-3.
TOLERANCE, HALF_TOLERANCE = 5e-3, 3e-2
# Largest relative difference between the change of all weights and the CPU's: the mean loss of ten steps alone hardly
# depends on the weights. It is 0.03 to 0.06 with bfloat16 on the CPU, 0.1 if gradients are a tenth too large, 38 with
# another seed. With float16 the gradient scaler may skip the first steps, and each of the ten steps counts 0.1.
WEIGHTS_TOLERANCE, HALF_WEIGHTS_TOLERANCE, SCALED_WEIGHTS_TOLERANCE = 0.05, 0.2, 0.5


def train(setting: Setting, name: str, *overrides: str, device: str | None = None) -> dict[str, Any]:
    """Train once in this process.

    Args:
        name: name of the run's directory, in the part's folder.
        device: the device to use; default: the tested device.

    Returns:
        The run's record.
    """
    torch.backends.cudnn.allow_tf32 = False  # TF32 rounds to 10 bits, which would look like an error of the device
    folder = Path(setting.folder) / name
    return laptime.run([*PLAIN, f"device={device or setting.kind}", *overrides, f"hydra.run.dir='{folder}'"])


def weight_difference(record: dict[str, Any], expected: dict[str, Any]) -> float:
    """Distance between the weights of two runs, relative to their change in the expected run's last epoch."""
    start, end = (_weights(expected, name) for name in (PREVIOUS_CHECKPOINT, LAST_CHECKPOINT))
    return float((_weights(record, LAST_CHECKPOINT) - end).norm() / (end - start).norm())


def _weights(record: dict[str, Any], name: str) -> torch.Tensor:
    """All weights and floating-point buffers of a checkpoint, as one vector."""
    path = Path(record["run_dir"]) / CHECKPOINT_DIR / name
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    return torch.cat([value.flatten().double() for value in state.values() if value.is_floating_point()])


def check_learned(
    notes: Notes, what: str, record: dict[str, Any], expected: dict[str, Any], precision: str = "32-true"
) -> None:
    """Check that a run's loss and the change of its weights are those of another run.

    Args:
        what: the check's name.
        expected: the other run's record, usually from the CPU.
        precision: the run's precision.
    """
    tolerance, weights_tolerance = (TOLERANCE, WEIGHTS_TOLERANCE)
    if precision != "32-true":
        scaled = precision == "16-mixed"
        tolerance, weights_tolerance = HALF_TOLERANCE, SCALED_WEIGHTS_TOLERANCE if scaled else HALF_WEIGHTS_TOLERANCE
    loss, expected_loss = (float(run["result"]["train_loss"]) for run in (record, expected))
    difference = abs(loss - expected_loss) / abs(expected_loss)
    weights = weight_difference(record, expected)
    notes.check(
        what,
        difference <= tolerance and weights <= weights_tolerance,
        f"loss {loss:.5f}, expected {expected_loss:.5f}, relative difference {difference:.1e}, at most {tolerance:g}; "
        f"relative difference of the weights' change {weights:.1e}, at most {weights_tolerance:g}",
    )
