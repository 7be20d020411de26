"""A callback that pauses a run at a given batch, for tests that kill it there."""

import time
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Callback

_GIVE_UP_AFTER_S = 600


class PauseOnce(Callback):
    """Pauses once in the middle of an epoch, until the run is killed or the file `go on` exists.

    The file `paused` in the current folder marks the pause, so that a resumed run doesn't pause again.

    Args:
        epoch: the epoch, from 0.
        batch: the batch after which it pauses.
    """

    def __init__(self, epoch: int, batch: int = 0) -> None:
        self.epoch, self.batch = epoch, batch

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch != self.epoch or batch_idx != self.batch or Path("paused").exists():
            return
        Path("paused").touch()
        deadline = time.monotonic() + _GIVE_UP_AFTER_S
        while not Path("go on").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
