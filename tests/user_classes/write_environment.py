"""Callbacks that write what a rank finds in its environment, and a model that changes torch's threads."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback

from laptime.models.mlp import MLP


class WriteVariable(Callback):
    """Writes an environment variable's value to noted<rank>."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        Path(f"noted{trainer.global_rank}").write_text(os.environ.get(self.name, "not set"))


class ChangesThreads(MLP):
    """Sets another number of torch threads than the run's."""

    def __init__(self, **arguments: Any) -> None:
        torch.set_num_threads(3)
        super().__init__(**arguments)


class WriteModules(Callback):
    """Writes which of Laptime's modules rank 1 has imported, without the package's name."""

    def on_test_end(self, trainer: Any, module: Any) -> None:
        names = sorted(name.removeprefix("laptime.") for name in sys.modules if name.startswith("laptime."))
        if trainer.global_rank == 1:
            Path("modules.json").write_text(json.dumps(names))
