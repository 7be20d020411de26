"""Opens a trained run that `find_run` has found: its checkpoint, network and data. Does not trust the run directory.

The directory may come from anywhere. Classes that its record names are imported only if they are on the allow-list (see
security), and a checkpoint is read as tensors and plain values only.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from laptime.data.datamodule import DataModule
from laptime.data.text import Text
from laptime.data.text_datamodule import VOCABULARY, TextDataModule
from laptime.errors import UserError
from laptime.evaluation.find_run import RunLocation
from laptime.machine.device import Device
from laptime.record import files as records
from laptime.record.files import (
    CHECKPOINT_DIR,
    LAST_CHECKPOINT,
)
from laptime.record.laps import steps_per_lap
from laptime.record.run_record import RunRecord
from laptime.record.schema import filled
from laptime.tasks.choose import recorded_class
from laptime.tasks.language_modeling import LanguageModeling
from laptime.text import join_first_three
from laptime.training import checkpoints, open_groups
from laptime.training.build import build_network

log = logging.getLogger(__name__)

# Prefix of the network's weights in a checkpoint.
_PREFIX = "network."


@dataclass(frozen=True)
class TrainedRun:
    """A run and one of its checkpoints.

    Attributes:
        path: the run directory.
        record: the run's record; its device, dataset and strategy are not None.
        config: the recorded configuration, except for dataset.root, which this command sets.
        checkpoint: the path of the checkpoint.
        epochs: the number of epochs (or laps) that the run had trained when it saved the checkpoint.
        weights: the network's weights, by name.
        world_size: the number of ranks of the run.
        threads: the CPU threads of each rank.
        vocabulary: the characters that the network was trained on; empty: it was not trained on text.
    """

    path: Path
    record: RunRecord
    config: Mapping[str, Any]
    checkpoint: Path
    epochs: int
    weights: Mapping[str, Any]
    world_size: int
    threads: int
    vocabulary: str = ""

    @property
    def trained(self) -> dict[str, int | None]:
        """How long the checkpoint was trained, in epochs or in steps; the other one is None."""
        lap_steps = steps_per_lap(self.config["training"])
        if lap_steps is None:
            return {"epochs": self.epochs, "steps": None}
        return {"epochs": None, "steps": self.epochs * lap_steps}

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
        if isinstance(source, Text):
            source.vocabulary = self.vocabulary
        settings = self.config["training"]
        data = recorded_class(self.config).data_module(
            source, device, 1, settings["eval_batch_size"], 1, self.config["seed"]
        )
        network = build_network(self.config["model"], source)
        try:
            network.load_state_dict(dict(self.weights))
        except Exception as error:
            reason = [line.strip() for line in str(error).splitlines() if line.strip()][:2][-1].rstrip(".")
            raise UserError(
                f"checkpoint={self.checkpoint}: its weights don't fit the run's model ({reason})."
            ) from error
        return network.to(device.torch_device).eval(), data


def open_run(location: RunLocation) -> TrainedRun:
    """Read a run's checkpoint.

    Raises:
        UserError: it is damaged, or belongs to another run.
    """
    run_dir, config, world_size, path = location.path, location.config, location.world_size, location.checkpoint
    key = f"checkpoint={path}"
    content = checkpoints.read(path, key, "there is nothing to evaluate")
    identity = records.finite(checkpoints.identity(config, world_size))
    if differences := checkpoints.differences_between(records.finite(content[checkpoints.IDENTITY]), identity):
        raise UserError(
            f"{key}: was not saved by {run_dir}, because {join_first_three(differences)}. "
            "Give a checkpoint of that run."
        )
    if checkpoints.epochs_trained(content) == 0:
        log.warning("%s: was saved before the first epoch ended, so these weights are not trained", key)
    weights = content["state_dict"]
    if not isinstance(weights, dict) or not all(str(name).startswith(_PREFIX) for name in weights):
        raise UserError(f"{key}: is damaged, because its state_dict does not contain the network's weights.")
    return TrainedRun(
        run_dir,
        location.record,
        config,
        path,
        checkpoints.epochs_trained(content),
        {name.removeprefix(_PREFIX): value for name, value in weights.items()},
        world_size,
        location.threads,
        _vocabulary(content, key) if recorded_class(config) is LanguageModeling else "",
    )


def _vocabulary(checkpoint: Mapping[str, Any], key: str) -> str:
    saved = checkpoint.get(TextDataModule.__qualname__)  # where Lightning keeps the state of a data module
    vocabulary = saved.get(VOCABULARY) if isinstance(saved, dict) else None
    if not isinstance(vocabulary, str) or not vocabulary:
        raise UserError(f"{key}: is damaged, because it does not contain the vocabulary.")
    return vocabulary


def use_threads(run: TrainedRun, threads: int | None) -> int:
    """Set the number of CPU threads (None: as many as each rank of the run had), and return it."""
    torch.set_num_threads(threads or run.threads)
    return torch.get_num_threads()
