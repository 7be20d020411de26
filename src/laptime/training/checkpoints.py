"""Finding a checkpoint to go on from, and making sure that it belongs to this experiment. Never runs code from it."""

import logging
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from laptime.config.identity import NEUTRAL_VALUES
from laptime.errors import UserError, first_line
from laptime.ranks.rank import Rank
from laptime.record.directory import expanded
from laptime.record.files import (
    BEST_CHECKPOINT,
    CHECKPOINT_DIR,
    LAST_CHECKPOINT,
    PREVIOUS_CHECKPOINT,
    write_atomically,
)
from laptime.record.latest import newest_runs
from laptime.record.masking import mask
from laptime.record.renamed import by_new_names
from laptime.text import join_first_three

log = logging.getLogger(__name__)

# The entry that Laptime adds to Lightning's checkpoint.
IDENTITY = "laptime"


def find(checkpoint: str) -> Path:
    """The file that `training.checkpoint` means; where that is a damaged last.ckpt, the one before it.

    Args:
        checkpoint: a file, a run directory, or latest.

    Raises:
        UserError: there is none.
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
            f"training.checkpoint={checkpoint}: there is no file {path}. Name a .ckpt file, a run directory or latest."
        )
    return path


def newest_run(key: str) -> Path:
    """The directory of the newest run that has a checkpoint.

    Args:
        key: that asked for it, for the message.

    Raises:
        UserError: there is none.
    """
    found = newest_runs(holding=f"{CHECKPOINT_DIR}/{LAST_CHECKPOINT}")
    if not found:
        raise UserError(f"{key}=latest: no run below outputs/ or multirun/ has a checkpoint.")
    return found[0]


def last_intact(run_dir: Path) -> Path | None:
    """The last checkpoint of a run that is whole; None: it has none."""
    return _last_intact(run_dir / CHECKPOINT_DIR / LAST_CHECKPOINT)


def _last_intact(last: Path) -> Path | None:
    previous = last.with_name(PREVIOUS_CHECKPOINT)
    if (damage := _damage(last)) is None:
        return last
    if _damage(previous) is not None:
        return None
    log.warning("%s is damaged (%s): going on from the checkpoint before it, %s", last, damage, previous)
    return previous


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's file, a zip archive with a checksum of each part; None: nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except Exception as error:  # damage can look like anything
        return first_line(error)
    return None if part is None else f"checksum of {part}"


def find_on_all_ranks(checkpoint: str, rank: Rank, run_dir: Path) -> Path:
    """The file that `training.checkpoint` means to the first rank; ranks on machines without it are sent a copy.

    Args:
        checkpoint: a file, a run directory, or latest.
        rank: this process.
        run_dir: where a copy is put.

    Raises:
        UserError: the first rank has none.
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
    copy = run_dir / CHECKPOINT_DIR / f"from rank 0, for rank {rank.rank}.ckpt"
    copy.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(copy, content)
    return copy


def _instead(path: Path, otherwise: str) -> str:
    others = [path.with_name(name) for name in (LAST_CHECKPOINT, PREVIOUS_CHECKPOINT, BEST_CHECKPOINT)]
    whole = [str(each) for each in others if each != path and _damage(each) is None]
    return f"Whole is {' and '.join(whole)}: name that." if whole else f"None beside it is whole: {otherwise}."


# What a run may change when it goes on: how long, where, and what changes the timing but not the training.
_MAY_CHANGE = {
    "dataset": {"root", "num_workers"},
    "training": {
        "epochs", "checkpoint", "time_limit_s", "early_stopping_patience", "steps_per_execution", "eval_batch_size",
        "compile", "cudnn_benchmark",
    },
}  # fmt: skip


_CHECKSUM = "dataset checksum"


def identity(config: Mapping[str, Any], world_size: int, checksum: str | None = None) -> dict[str, Any]:
    """What a checkpoint must share with the run that goes on from it: all that decides what is learnt, by full key;
    secrets masked, for it is written into the checkpoint.

    Args:
        checksum: of the data; None: it is not known, and not compared.
    """
    config = mask(config)
    groups = ("dataset", "model", "optimizer", "scheduler", "training")
    keys = {
        f"{group}.{key}": value
        for group in groups
        for key, value in config[group].items()
        if key not in _MAY_CHANGE.get(group, ())
        and not (group == "training" and key in NEUTRAL_VALUES and value == NEUTRAL_VALUES[key])
    }
    if checksum is not None:
        keys[_CHECKSUM] = checksum
    return keys | {"seed": config["seed"], "strategy.world_size": world_size}


def require_resumable(path: Path, expected: Mapping[str, Any], epochs: int) -> int:
    """Make sure that a run can go on from a checkpoint.

    Args:
        path: the file.
        expected: `identity` of this run.
        epochs: that this run is to have trained at its end.

    Returns:
        The number of epochs that it has trained.

    Raises:
        UserError: unreadable, of another experiment, or already trained that far.
    """
    key = f"training.checkpoint={path}"
    checkpoint = read(path, key, "start without it")
    differences = differences_between(checkpoint[IDENTITY], expected)
    if differences:
        raise UserError(
            f"{key}: is of another experiment: {join_first_three(differences)}.\n"
            "Give the run the checkpoint's values, or start without it."
        )
    done = epochs_trained(checkpoint)
    if done >= epochs:
        raise UserError(
            f"{key}: has trained {done} epochs already, and training.epochs={epochs}. "
            f"Set training.epochs to more than {done}."
        )
    return done


def read(path: Path, key: str, otherwise: str) -> dict[str, Any]:
    """Read a checkpoint of Laptime's, tensors and plain values only.

    Args:
        path: the file.
        key: that names it, with its value, for the messages.
        otherwise: what to do where there is no other.

    Raises:
        UserError: it is unreadable, or not Laptime's.
    """
    try:
        if (damage := _damage(path)) is not None:
            raise ValueError(damage)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can fail in any way; none of them runs code from it
        raise UserError(
            f"{key}: is damaged or no checkpoint of plain values ({type(error).__name__}).\n{_instead(path, otherwise)}"
        ) from error
    if not isinstance(checkpoint, dict) or IDENTITY not in checkpoint or "loops" not in checkpoint:
        raise UserError(f"{key}: was not written by Laptime.")
    try:
        epochs_trained(checkpoint)
        parts = {"state_dict", "optimizer_states", "lr_schedulers"}
        complete = isinstance(checkpoint[IDENTITY], dict) and parts <= checkpoint.keys()
    except (KeyError, TypeError, ValueError):
        complete = False
    if not complete:
        raise UserError(f"{key}: is damaged: parts of it are missing.")
    checkpoint[IDENTITY] = by_new_names(checkpoint[IDENTITY])
    return checkpoint


def epochs_trained(checkpoint: Mapping[str, Any]) -> int:
    """How many epochs the run had trained when it saved this."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])


def differences_between(there: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """What two identities don't share, in words. A checksum that one of them lacks is not compared."""
    keys = dict.fromkeys([*expected, *there])
    if not (_CHECKSUM in there and _CHECKSUM in expected):
        keys.pop(_CHECKSUM, None)
    return [
        f"{key} {there.get(key)} there, {expected.get(key)} here" for key in keys if there.get(key) != expected.get(key)
    ]
