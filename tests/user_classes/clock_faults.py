"""A callback that sets the clock back."""

import time
from typing import Any

from pytorch_lightning.callbacks import Callback

_real = time.time


class SetClockBack(Callback):
    """Sets this process's clock back by two hours before each epoch."""

    def on_train_epoch_start(self, trainer: Any, *_: Any) -> None:
        time.time = lambda: _real() - 7200 * (trainer.current_epoch + 1)
