"""Compiles the network before the first epoch, so that no timed epoch contains compiling."""

import logging
import time

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from laptime.data.datamodule import DataModule
from laptime.errors import UserError, first_line
from laptime.machine.device import Device
from laptime.training.capabilities import HasStepper, missing_attributes

log = logging.getLogger(__name__)


class CompileAhead(Callback):
    """Compiles the network for every batch shape of training and validation.

    Args:
        device: is synchronized before the clock is read.
        data: the data, whose batches have the shapes to compile for.

    Attributes:
        compile_s: compilation time in seconds; None before the compilation.
    """

    def __init__(self, device: Device, data: DataModule) -> None:
        self.device = device
        self.data = data
        self.compile_s: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not isinstance(pl_module, HasStepper):
            raise UserError(
                f"training.compile=true: {missing_attributes(pl_module, HasStepper)}, so Laptime can't compile its "
                "network before the first epoch. Use training.compile=false."
            )
        data = self.data
        before = time.perf_counter()
        try:
            pl_module.stepper.compile()
            for training, sizes in ((True, data.train_batch_sizes()), (False, data.val_batch_sizes())):
                for size in sorted(set(sizes), reverse=True):
                    pl_module.stepper.run_once(*data.data.example(size, self.device.torch_device), training)
        except (RuntimeError, ImportError, OSError) as error:
            reason = first_line(error)
            raise UserError(
                f"training.compile=true: torch can't compile this network on {self.device.used} ({reason}). "
                "Use training.compile=false."
            ) from error
        self.device.synchronize()
        self.compile_s = time.perf_counter() - before
        log.info("compiled the network in %.1f s, outside the timed %ss", self.compile_s, data.order.lap_word)
