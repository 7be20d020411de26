"""Finds a trained run and its checkpoint, and checks its record. Imports no class that it names, and no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from laptime.config import security
from laptime.config.schema import CLASSIFICATION, MATMUL_PRECISIONS, OWN, PRECISIONS, SCORES, one_of
from laptime.errors import UserError
from laptime.ranks import preflight
from laptime.record.directory import expanded, numbered_runs
from laptime.record.files import (
    BEST_CHECKPOINT,
    CHECKPOINT_DIR,
    LAST_CHECKPOINT,
    PREVIOUS_CHECKPOINT,
    RUN_FILE,
    SWEEP_FILE,
    flat,
)
from laptime.record.latest import newest_run
from laptime.record.masking import MASK
from laptime.record.run_record import RunRecord

_CHECKPOINTS = {"last": LAST_CHECKPOINT, "best": BEST_CHECKPOINT, "previous": PREVIOUS_CHECKPOINT}
# The keys of config.training that evaluation needs, besides the batch size.
_CHOICES = {
    "precision": PRECISIONS,
    "matmul_precision": MATMUL_PRECISIONS,
    "compile": (False, True),
    "cudnn_benchmark": (False, True),
}


@dataclass(frozen=True)
class RunLocation:
    """A run and one of its checkpoints, which has not been read.

    Attributes:
        path: the run directory.
        record: the run's record; its device, dataset and strategy are not None.
        config: the recorded configuration, except for dataset.root, which this command sets.
        checkpoint: the path of the checkpoint.
        world_size: the number of ranks of the run.
        threads: the CPU threads of each rank.
    """

    path: Path
    record: RunRecord
    config: Mapping[str, Any]
    checkpoint: Path
    world_size: int
    threads: int


def find_run(
    run: str, checkpoint: str, cli_overrides: Sequence[str], dataset: Mapping[str, str | None] | None = None
) -> RunLocation:
    """Find a run, and read its record without importing the classes that it names.

    Args:
        run: a run directory, latest, or a checkpoint file in one.
        checkpoint: last, best, previous or a file.
        cli_overrides: the overrides of the command line; only they can extend the allow-list.
        dataset: keys of the group `dataset` to use instead of those of the run; a value of None: that of the run.

    Raises:
        UserError: there is no such run or checkpoint, the record is damaged, or it names a class that is not on the
            allow-list.
    """
    preflight.check_environment()
    run_dir, file = _find(run, checkpoint)
    try:
        record = RunRecord.read(run_dir)
    except ValueError as error:
        raise UserError(f"run={run}: the record can't be read: {error}.") from error
    except OSError as error:
        raise UserError(f"run={run}: {run_dir / RUN_FILE} can't be read ({error.strerror}).") from error
    if not record.is_laptime_training:
        raise UserError(
            f"run={run}: {record.lap.timer} only timed this training, so Laptime can't rebuild its model. "
            "Give a run of train.py."
        )
    if (record.config or {}).get("task", {}).get("name") == OWN:
        raise UserError(
            f"run={run}: it trained with task=own, and Laptime rebuilds only the models of its own tasks. Load the "
            "checkpoint in Python: MyModule.load_from_checkpoint(...)."
        )
    path = file or _checkpoint(run_dir, checkpoint)
    config, world_size, threads = _checked(record, run_dir)
    task = _task(config)
    for key, value in (dataset or {}).items():
        if value is not None:
            if key not in config["dataset"]:
                raise UserError(f"dataset.{key}={value}: has no effect on a run with task={task}. Leave it out.")
            config = {**config, "dataset": {**config["dataset"], key: value}}
    security.check_targets(
        {group: config[group] for group in ("model", "dataset")}, cli_overrides, record.command or ()
    )
    return RunLocation(run_dir, record, config, path, world_size, threads)


def require_images(location: RunLocation) -> None:
    """Refuse runs that were not trained on images, because exporting needs images to compare outputs."""
    if (task := _task(location.config)) != CLASSIFICATION:
        raise UserError(
            f"run={location.path}: was trained with task={task}, and export supports task={CLASSIFICATION} alone. Load "
            "the weights from its checkpoint instead: torch.load(FILE)['state_dict']."
        )


def _task(config: Mapping[str, Any]) -> str:
    """Return the task of a recorded configuration. Records of older versions name none."""
    name = str((config.get("task") or {}).get("name", CLASSIFICATION))
    one_of("task", name, tuple(SCORES))
    return name


def _find(run: str, checkpoint: str) -> tuple[Path, Path | None]:
    """Return the run directory, and the checkpoint's file if `run` is a checkpoint."""
    path = newest_run("run") if run == "latest" else expanded("run", run)
    if path.is_file() and path.name != RUN_FILE:
        if checkpoint != "last":
            raise UserError(f"run={run} checkpoint={checkpoint}: both name a checkpoint. Leave one out.")
        run_dir, file = path.parent.parent, path
        if not (run_dir / RUN_FILE).is_file():
            raise UserError(
                f"run={run}: must be in a run directory. Otherwise give the directory, too: run=DIR checkpoint={run}"
            )
        return run_dir, file
    run_dir = path.parent if path.name == RUN_FILE else path
    if not (run_dir / RUN_FILE).is_file():
        if (run_dir / SWEEP_FILE).is_file():
            runs = [str(run_dir / str(number)) for number in sorted(numbered_runs(run_dir))]
            names = ", ".join([*runs[:3], *(["..."] if len(runs) > 3 else [])])
            raise UserError(f"run={run}: must be a run, not a sweep. Use one of its runs: {names}")
        reason = "has no run.json" if run_dir.is_dir() else "there is no such directory"
        raise UserError(f"run={run}: {reason}. Give a run directory, a .ckpt file in one, or latest.")
    return run_dir, None


def _checkpoint(run_dir: Path, checkpoint: str) -> Path:
    """Return the file of the checkpoint that a command names: last, best, previous or a file."""
    name = _CHECKPOINTS.get(checkpoint)
    file = run_dir / CHECKPOINT_DIR / name if name is not None else expanded("checkpoint", checkpoint)
    if not file.is_file():
        saved = [key for key, name in _CHECKPOINTS.items() if (run_dir / CHECKPOINT_DIR / name).is_file()]
        raise UserError(
            f"checkpoint={checkpoint}: there is no file {file}. "
            + (f"The run has {', '.join(saved)}." if saved else "The run has no checkpoint.")
        )
    return file


def _checked(record: RunRecord, run_dir: Path) -> tuple[dict[str, Any], int, int]:
    """Check that a record has all that evaluation needs. Return configuration, ranks and threads per rank."""

    def damaged(problem: str) -> UserError:
        return UserError(f"run={run_dir}: run.json is damaged: {problem}.")

    config = record.config
    if config is None:
        raise damaged("it has no configuration")
    for group in ("dataset", "model", "optimizer", "scheduler", "training"):
        if not isinstance(config.get(group), dict):
            raise damaged(f"config.{group} is missing")
    strategy = record.strategy
    if strategy is None or record.device is None or record.dataset is None:
        raise damaged("device, dataset or strategy is missing")
    training = config["training"]
    numbers = {
        "config.seed": config.get("seed"),
        "config.training.eval_batch_size": training.get("eval_batch_size"),
        "strategy.world_size": strategy.world_size,
        "strategy.threads_per_rank": strategy.threads_per_rank,
    }
    for key, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or not (key == "config.seed" or 0 < value <= 10**9):
            raise damaged(f"{key} is {value}")
    for key, choices in _CHOICES.items():
        if training.get(key) not in choices:
            raise damaged(f"config.training.{key} is {training.get(key)}")
    for key, value in flat({group: config[group] for group in ("dataset", "model")}):
        if value == MASK and key != "dataset.root":
            raise UserError(
                f"run={run_dir}: {key} is a secret, which run.json does not contain, so the model can't be rebuilt."
            )
    return config, strategy.world_size, strategy.threads_per_rank
