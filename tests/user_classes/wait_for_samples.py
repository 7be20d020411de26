"""A callback that lets the sampler of memory look often enough, however fast the machine trains."""

import gc
import time
from typing import Any

from pytorch_lightning.callbacks import Callback

from laptime.measure.sampler import Sampler


class WaitForSamples(Callback):
    """Waits after each batch until the sampler, in a rank that has one, has looked so many times; a minute at most."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        samplers = [each for each in gc.get_objects() if isinstance(each, Sampler)]
        deadline = time.monotonic() + 60
        while any(each.num_samples < self.number for each in samplers) and time.monotonic() < deadline:
            time.sleep(0.01)
