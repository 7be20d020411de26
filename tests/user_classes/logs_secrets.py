"""A network and a callback that reveal the secrets in their arguments."""

import logging
from typing import Any

import pytorch_lightning as pl

from laptime.models.mlp import MLP


class Leaky(MLP):
    """Logs its token."""

    def __init__(self, token: str | None = None, **arguments: Any) -> None:
        logging.getLogger("leaky").warning("trying %s", token)
        super().__init__(**arguments)


class Fails(pl.Callback):
    """Raises an error that contains its password."""

    def __init__(self, password: str) -> None:
        self.password = password

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        raise RuntimeError(f"401 for {self.password}")
