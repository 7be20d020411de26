"""Finding a checkpoint to go on from, and making sure that it belongs to this experiment. Never runs code from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from laptime.errors import UserError
from laptime.record import CHECKPOINT_DIR, LAST_CHECKPOINT, latest_run

# Where `latest` looks, relative to the working directory: Hydra's usual places.
RESULT_FOLDERS = (Path("outputs"), Path("multirun"))
# The entry that Laptime adds to Lightning's checkpoint.
IDENTITY = "laptime"


def find(checkpoint: str) -> Path:
    """The file that `training.checkpoint` means.

    Args:
        checkpoint: a file, a run directory, or latest.

    Raises:
        UserError: there is none.
    """
    if checkpoint == "latest":
        found = [run for folder in RESULT_FOLDERS if (run := latest_run(folder, f"{CHECKPOINT_DIR}/{LAST_CHECKPOINT}"))]
        if not found:
            raise UserError("training.checkpoint=latest: no run below outputs/ or multirun/ has a checkpoint.")
        return max(found, key=lambda run: run.stat().st_mtime) / CHECKPOINT_DIR / LAST_CHECKPOINT
    path = Path(checkpoint).expanduser()
    if path.is_dir():
        path = path / CHECKPOINT_DIR / LAST_CHECKPOINT
    if not path.is_file():
        raise UserError(
            f"training.checkpoint={checkpoint}: there is no file {path}. Name a .ckpt file, a run directory or latest."
        )
    return path


def identity(config: Mapping[str, Any], image_shape: tuple[int, ...], num_classes: int) -> dict[str, Any]:
    """What a checkpoint must share with the run that goes on from it."""
    return {
        "model": dict(config["model"]),
        "dataset": str(config["dataset"]["_target_"]).rpartition(".")[2],
        "image_shape": list(image_shape),
        "num_classes": num_classes,
        "optimizer": config["optimizer"]["_target_"],
        "seed": config["seed"],
    }


def load(path: Path, expected: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    """Read a checkpoint, tensors and plain values only, and compare it with the experiment.

    Args:
        path: the file.
        expected: `identity` of this run.
        epochs: that this run is to have trained at its end.

    Returns:
        The checkpoint, as Lightning wrote it.

    Raises:
        UserError: unreadable, of another experiment, or already trained that far.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way; none of them runs code from it
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"training.checkpoint={path}: is damaged or no checkpoint ({reason}).") from error
    if not isinstance(checkpoint, dict) or IDENTITY not in checkpoint or "loops" not in checkpoint:
        raise UserError(f"training.checkpoint={path}: was not written by Laptime.")
    differences = [
        f"{key} {checkpoint[IDENTITY].get(key)} there, {value} here"
        for key, value in expected.items()
        if checkpoint[IDENTITY].get(key) != value
    ]
    if differences:
        raise UserError(f"training.checkpoint={path}: is of another experiment: {'; '.join(differences)}.")
    done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if done >= epochs:
        raise UserError(
            f"training.checkpoint={path}: has trained {done} epochs already, and training.epochs={epochs}. "
            f"Set training.epochs to more than {done}."
        )
    return checkpoint
