"""A callback that gives the memory sampler time for its samples on a fast machine."""

import gc
import time
from typing import Any

from pytorch_lightning.callbacks import Callback

from laptime.measure.sampler import Sampler


class WaitForSamples(Callback):
    """Waits after each batch until the rank's sampler, if it has one, has `number` samples, or for a minute."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        samplers = [value for value in gc.get_objects() if isinstance(value, Sampler)]
        deadline = time.monotonic() + 60
        while any(sampler.num_samples < self.number for sampler in samplers) and time.monotonic() < deadline:
            time.sleep(0.01)
