"""Finds the checkpoint to resume from and checks that it belongs to this experiment. Never runs code from it."""

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from laptime.config.identity import NEUTRAL_VALUES
from laptime.config.schema import OWN, TrainingConfig
from laptime.errors import UserError, first_line
from laptime.ranks.rank import Rank
from laptime.record.directory import expanded
from laptime.record.files import (
    BEST_CHECKPOINT,
    CHECKPOINT_DIR,
    LAST_CHECKPOINT,
    PREVIOUS_CHECKPOINT,
    flat,
    write_atomically,
)
from laptime.record.laps import steps_per_lap
from laptime.record.latest import newest_run
from laptime.record.masking import mask
from laptime.record.renamed import by_new_names
from laptime.text import join_first_three

log = logging.getLogger(__name__)

# The entry that Laptime adds to Lightning's checkpoint.
IDENTITY = "laptime"


def find(checkpoint: str) -> Path:
    """Return the file that `training.checkpoint` names, or the checkpoint before it if it is a damaged last.ckpt.

    Args:
        checkpoint: a file, a run directory, or latest.

    Raises:
        UserError: there is no such file.
    """
    if checkpoint == "latest":
        checkpoint = str(newest_run("training.checkpoint"))
    path = expanded("training.checkpoint", checkpoint)
    if path.is_dir():
        path = path / CHECKPOINT_DIR / LAST_CHECKPOINT
    if path.name == LAST_CHECKPOINT:
        path = _last_intact(path) or path
    if not path.is_file():
        raise UserError(
            f"training.checkpoint={checkpoint}: there is no file {path}. Give a .ckpt file, a run directory or latest."
        )
    return path


def last_intact(run_dir: Path) -> Path | None:
    """Return the last checkpoint of a run that is not damaged; None: there is none."""
    return _last_intact(run_dir / CHECKPOINT_DIR / LAST_CHECKPOINT)


def _last_intact(last: Path) -> Path | None:
    previous = last.with_name(PREVIOUS_CHECKPOINT)
    if (damage := _damage(last)) is None:
        return last
    if _damage(previous) is not None:
        return None
    log.warning("%s is damaged (%s): resuming from the checkpoint before it, %s", last, damage, previous)
    return previous


def _damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint file, a zip archive with a checksum of each member; None: nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged_member = archive.testzip()
    except Exception as error:  # zipfile raises many kinds of errors on damaged files
        return first_line(error)
    return None if damaged_member is None else f"wrong checksum of {damaged_member}"


def find_on_all_ranks(checkpoint: str, rank: Rank, run_dir: Path) -> Path:
    """Return the file that `training.checkpoint` names on the first rank, or a copy on machines without that file.

    Args:
        checkpoint: a file, a run directory, or latest.
        rank: this process.
        run_dir: the folder for a copy.

    Raises:
        UserError: the first rank has no such file.
    """
    if not rank.is_distributed:
        return find(checkpoint)
    path: Path | None = None
    refusal = ""
    if rank.is_first:
        try:
            path = find(checkpoint).absolute()
        except UserError as error:
            refusal = str(error)
    path, refusal = rank.gather((path, refusal))[0]
    if path is None:
        raise UserError(refusal)
    if not rank.any_rank(not path.is_file()):
        return path
    content = rank.gather(path.read_bytes() if rank.is_first else b"")[0]
    if path.is_file():
        return path
    copy = run_dir / CHECKPOINT_DIR / f"from-rank-0-for-rank-{rank.rank}.ckpt"
    copy.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(copy, content)
    return copy


def _remedy(path: Path, fallback: str) -> str:
    candidates = [path.with_name(name) for name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT, BEST_CHECKPOINT)]
    intact = [str(candidate) for candidate in candidates if candidate != path and _damage(candidate) is None]
    return f"Use {' or '.join(intact)} instead." if intact else f"Its folder has no intact checkpoint: {fallback}."


# Keys that a resumed run may change: its length, paths, and settings that affect the timing but not the training.
_CHANGEABLE_KEYS = {
    "dataset": {"root", "path", "num_workers"},  # whose content is compared by checksum
    "training": {
        "epochs", "max_steps", "checkpoint", "time_limit_s", "early_stopping_patience", "steps_per_execution",
        "eval_batch_size", "compile", "cudnn_benchmark",
    },
}  # fmt: skip


_CHECKSUM = "dataset checksum"


def identity(config: Mapping[str, Any], world_size: int, checksum: str | None = None) -> dict[str, Any]:
    """Return the settings that must be equal in a checkpoint and in the run that resumes from it, by full key.

    They are all settings that affect what the network learns. Secrets are masked, because they go into the checkpoint.

    Args:
        checksum: the checksum of the data; None: unknown, so it is not compared.
    """
    config = mask(config)
    config = {**config, "training": {**config["training"], "lap_steps": steps_per_lap(config["training"])}}
    groups = ("dataset", "model", "optimizer", "scheduler", "training")
    keys = {
        f"{group}.{key}": value
        for group in groups
        for key, value in config[group].items()
        if key not in _CHANGEABLE_KEYS.get(group, ())
        and not (group == "training" and key in NEUTRAL_VALUES and value == NEUTRAL_VALUES[key])
    }
    task = config.get("task", {})
    for name in ("module", "data") if task.get("name") == OWN else ():
        keys |= {f"task.{name}.{key}": value for key, value in flat(task[name]) if key != "num_workers"}
    if checksum is not None:
        keys[_CHECKSUM] = checksum
    return keys | {"seed": config["seed"], "strategy.world_size": world_size}


def require_resumable(
    path: Path, expected: Mapping[str, Any], settings: TrainingConfig, is_restarted: bool = False
) -> int:
    """Check that a run can resume from a checkpoint.

    Args:
        path: the checkpoint file.
        expected: this run's `identity`.
        settings: the settings of the training that resumes.
        is_restarted: whether this run was restarted. Then it may have trained all its epochs already.

    Returns:
        The number of epochs (or laps) that the checkpoint has trained.

    Raises:
        UserError: the file is unreadable, belongs to another experiment, or has trained as long as this run already.
    """
    key, num_done = f"training.checkpoint={path}", epochs_trained(read_same(path, expected))
    if num_done >= settings.num_laps + is_restarted:
        name, unit, trained = "epochs", "epochs", num_done
        if settings.steps_per_lap is not None:
            name, unit, trained = "max_steps", "steps", num_done * settings.steps_per_lap
        raise UserError(
            f"{key}: has trained {trained} {unit} already, but training.{name}={getattr(settings, name)}. "
            f"Set training.{name} to more than {trained}."
        )
    return num_done


def read_same(path: Path, expected: Mapping[str, Any]) -> dict[str, Any]:
    """Read a checkpoint of this experiment.

    Args:
        path: the checkpoint file.
        expected: this run's `identity`.

    Raises:
        UserError: the file is unreadable, or belongs to another experiment.
    """
    key = f"training.checkpoint={path}"
    checkpoint = read(path, key, "start without one")
    differences = differences_between(checkpoint[IDENTITY], expected)
    if differences:
        raise UserError(
            f"{key}: belongs to another experiment, because {join_first_three(differences)}.\n"
            "Use the checkpoint's values, or start without a checkpoint."
        )
    return checkpoint


def read(path: Path, key: str, fallback: str) -> dict[str, Any]:
    """Read a checkpoint that Laptime wrote; loads only tensors and plain values.

    Args:
        path: the checkpoint file.
        key: the configuration key that names it, with its value, for the messages.
        fallback: the advice in the message if the run has no other intact checkpoint.

    Raises:
        UserError: the file is unreadable, or Laptime did not write it.
    """
    try:
        if (damage := _damage(path)) is not None:
            raise ValueError(damage)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything; weights_only=True never runs code from it
        raise UserError(
            f"{key}: is damaged, or holds more than tensors and plain values ({type(error).__name__}).\n"
            f"{_remedy(path, fallback)}"
        ) from error
    if not isinstance(checkpoint, dict) or IDENTITY not in checkpoint or "loops" not in checkpoint:
        raise UserError(f"{key}: was not written by Laptime.")
    try:
        epochs_trained(checkpoint)
        required_keys = {"state_dict", "optimizer_states", "lr_schedulers"}
        complete = isinstance(checkpoint[IDENTITY], dict) and required_keys <= checkpoint.keys()
    except (KeyError, TypeError, ValueError):
        complete = False
    if not complete:
        raise UserError(f"{key}: is incomplete.")
    checkpoint[IDENTITY] = by_new_names(checkpoint[IDENTITY])
    return checkpoint


def epochs_trained(checkpoint: Mapping[str, Any]) -> int:
    """Return how many epochs the run had trained when it saved the checkpoint."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def differences_between(saved: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Describe where a checkpoint's identity and this run's differ. A checksum is compared only if both have one."""
    keys = dict.fromkeys([*expected, *saved])
    if not (_CHECKSUM in saved and _CHECKSUM in expected):
        keys.pop(_CHECKSUM, None)
    return [
        f"{key} is {saved.get(key)} in the checkpoint, {expected.get(key)} in the run"
        for key in keys
        if saved.get(key) != expected.get(key)
    ]
