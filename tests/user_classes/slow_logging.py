"""A logger that takes a thousand seconds to write, by the clock that times epochs."""

import time
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

SECONDS = 1000.0


class SlowLogger(Logger):
    """Sets that clock forward instead of waiting. The file `logged` in the current folder has a line for each call."""

    name = version = "slow"

    def log_hyperparams(self, params: Any) -> None:
        pass

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        clock = time.perf_counter
        time.perf_counter = lambda: clock() + SECONDS
        with Path("logged").open("a") as file:
            print(step, file=file)
