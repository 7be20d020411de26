"""Opens a trained run: its record and checkpoint, its network and data. Does not trust the run directory.

The directory may come from anywhere. Classes that its record names are imported only if they are on the allow-list (see
security), and a checkpoint is read as tensors and plain values only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from laptime.config import security
from laptime.config.schema import MATMUL_PRECISIONS, PRECISIONS
from laptime.data.datamodule import DataModule
from laptime.errors import UserError
from laptime.machine.device import Device
from laptime.ranks import preflight
from laptime.record import files as records
from laptime.record.directory import expanded, numbered_runs
from laptime.record.files import (
    BEST_CHECKPOINT,
    CHECKPOINT_DIR,
    LAST_CHECKPOINT,
    PREVIOUS_CHECKPOINT,
    RUN_FILE,
    SWEEP_FILE,
)
from laptime.record.masking import MASK
from laptime.record.run_record import RunRecord
from laptime.record.schema import filled
from laptime.text import join_first_three
from laptime.training import checkpoints, open_groups
from laptime.training.build import build_network

_CHECKPOINTS = {"last": LAST_CHECKPOINT, "best": BEST_CHECKPOINT, "previous": PREVIOUS_CHECKPOINT}
# The keys of config.training that evaluation needs, besides the batch size.
_CHOICES = {
    "precision": PRECISIONS,
    "matmul_precision": MATMUL_PRECISIONS,
    "compile": (False, True),
    "cudnn_benchmark": (False, True),
}
# Prefix of the network's weights in the checkpoint of a Classifier.
_PREFIX = "network."


@dataclass(frozen=True)
class TrainedRun:
    """A run and one of its checkpoints.

    Attributes:
        path: the run directory.
        record: the run's record; its device, dataset and strategy are not None.
        config: the recorded configuration, except for dataset.root, which this command sets.
        checkpoint: the path of the checkpoint.
        epochs: the number of epochs that the run had trained when it saved the checkpoint.
        weights: the network's weights, by name.
        world_size: the number of ranks of the run.
        threads: the CPU threads of each rank.
    """

    path: Path
    record: RunRecord
    config: Mapping[str, Any]
    checkpoint: Path
    epochs: int
    weights: Mapping[str, Any]
    world_size: int
    threads: int

    @property
    def is_last(self) -> bool:
        """Whether the checkpoint is last.ckpt of the run."""
        return self.checkpoint.name == LAST_CHECKPOINT and self.checkpoint.parent == self.path / CHECKPOINT_DIR

    def has_other_data(self, data: DataModule) -> bool:
        """Whether the data differ from those of the run, by checksum."""
        return filled(self.record.dataset).checksum != data.checksum

    def load(self, device: Device) -> tuple[nn.Module, DataModule]:
        """Return the network in evaluation mode on the device, and its data.

        Raises:
            UserError: they can't be built, or the weights don't fit the network.
        """
        pl.seed_everything(self.config["seed"], workers=False, verbose=False)  # as in training
        source = open_groups.build_node("dataset", self.config["dataset"])
        settings = self.config["training"]
        data = DataModule(source, device, 1, settings["eval_batch_size"], 1, self.config["seed"])
        network = build_network(self.config["model"], source)
        try:
            network.load_state_dict(dict(self.weights))
        except Exception as error:
            reason = [line.strip() for line in str(error).splitlines() if line.strip()][:2][-1].rstrip(".")
            raise UserError(
                f"checkpoint={self.checkpoint}: its weights don't fit the run's model ({reason})."
            ) from error
        return network.to(device.torch_device).eval(), data


def open_run(run: str, checkpoint: str, cli_overrides: Sequence[str], root: str | None = None) -> TrainedRun:
    """Find a run, and read its record and checkpoint without importing the classes that they name.

    Args:
        run: a run directory, latest, or a checkpoint file in one.
        checkpoint: last, best, previous or a file.
        cli_overrides: the overrides of the command line; only they can extend the allow-list.
        root: folder of the data set's files; None: the folder that the run used.

    Raises:
        UserError: there is no such run or checkpoint, it is damaged, the checkpoint belongs to another run, or the
            record names a class that is not on the allow-list.
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
    path = file or _checkpoint(run_dir, checkpoint)
    config, world_size, threads = _checked(record, run_dir)
    if root is not None:
        config = {**config, "dataset": {**config["dataset"], "root": root}}
    security.check_targets(
        {group: config[group] for group in ("model", "dataset")}, cli_overrides, record.command or ()
    )
    key = f"checkpoint={path}"
    content = checkpoints.read(path, key, "there is nothing to evaluate")
    identity = records.finite(checkpoints.identity(config, world_size))
    if differences := checkpoints.differences_between(records.finite(content[checkpoints.IDENTITY]), identity):
        raise UserError(
            f"{key}: was not saved by {run_dir}, because {join_first_three(differences)}. "
            "Give a checkpoint of that run."
        )
    weights = content["state_dict"]
    if not isinstance(weights, dict) or not all(str(name).startswith(_PREFIX) for name in weights):
        raise UserError(f"{key}: is damaged, because its state_dict does not contain the network's weights.")
    return TrainedRun(
        run_dir,
        record,
        config,
        path,
        checkpoints.epochs_trained(content),
        {name.removeprefix(_PREFIX): value for name, value in weights.items()},
        world_size,
        threads,
    )


def use_threads(run: TrainedRun, threads: int | None) -> int:
    """Set the number of CPU threads (None: as many as each rank of the run had), and return it."""
    torch.set_num_threads(threads or run.threads)
    return torch.get_num_threads()


def _find(run: str, checkpoint: str) -> tuple[Path, Path | None]:
    """Return the run directory, and the checkpoint's file if `run` is a checkpoint."""
    path = checkpoints.newest_run("run") if run == "latest" else expanded("run", run)
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
    for key, value in records.flat({group: config[group] for group in ("dataset", "model")}):
        if value == MASK and key != "dataset.root":
            raise UserError(
                f"run={run_dir}: {key} is a secret, which run.json does not contain, so the model can't be rebuilt."
            )
    return config, strategy.world_size, strategy.threads_per_rank
