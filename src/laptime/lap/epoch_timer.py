"""Times every epoch of Laptime's own training."""

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from laptime.lap.clock import Lap, LapClock
from laptime.lap.epoch_sums import Sums


class EpochTimer(Callback):
    """Makes a Lap from every complete epoch.

    Args:
        clock: is started by the loader when the first batch of an epoch is requested.
        warmup_epochs: number of epochs at the start of this process that don't count. A resumed run warms up again.
        tokens_per_sample: number of tokens in a sample; None: it is not text.

    Attributes:
        lap: the lap of the last epoch; None: the epoch was cut short.
        first_batch_at: `time.time()` when the first batch of the training was requested.
        train_started_at, train_ended_at: `time.perf_counter()` before and after all complete epochs, including
            validation and checkpoints.
        apart_s: seconds between these two times that other measurements took.
    """

    def __init__(self, clock: LapClock, warmup_epochs: int, tokens_per_sample: int | None = None) -> None:
        self.clock = clock
        self.tokens_per_sample = tokens_per_sample
        self.warmup_epochs = warmup_epochs
        self.lap: Lap | None = None
        self.first_batch_at: float | None = None
        self.train_started_at: float | None = None
        self.train_ended_at: float | None = None
        self.apart_s = 0.0
        self._first_epoch = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first_epoch = trainer.current_epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.lap is not None:
            self.train_ended_at = time.perf_counter()
        self.lap = None
        self.clock.drop()
        if self.train_started_at is None:
            self.train_started_at = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:
            self.clock.pause()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._make_lap(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Without a validation set there is no validation; with one, the lap was made before it.
        if self.lap is None:
            self._make_lap(trainer)
        if self.lap is not None:
            self.train_ended_at = time.perf_counter()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.lap is not None:
            self.train_ended_at = time.perf_counter()

    def _make_lap(self, trainer: pl.Trainer) -> None:
        clock = self.clock
        if not clock.is_paused:  # a callback stopped the epoch before its last batch
            return
        sums: Sums = trainer.lightning_module.train_sums  # type: ignore[assignment]
        if self.first_batch_at is None and clock.started_at is not None:
            self.first_batch_at = time.time() - (time.perf_counter() - clock.started_at)
        self.lap = clock.stop(
            trainer.current_epoch,
            trainer.current_epoch - self._first_epoch < self.warmup_epochs,
            num_samples=sums.num_samples,  # counted by the module, because a callback may skip batches
            num_batches=sums.num_batches,
            num_steps=sums.num_batches,
            num_tokens=None if self.tokens_per_sample is None else self.tokens_per_sample * sums.num_samples,
        )
