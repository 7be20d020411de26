"""Callbacks that end the training in the middle of an epoch."""

from typing import Any

from pytorch_lightning.callbacks import Callback


class StopWithinEpoch(Callback):
    """Asks Lightning to stop after a batch of an epoch, both counted from 0."""

    def __init__(self, epoch: int, batch: int) -> None:
        self.epoch, self.batch = epoch, batch

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == self.epoch and batch_idx == self.batch:
            trainer.should_stop = True


class FailAtBatch(Callback):
    """Fails at a batch that the training should not reach."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        assert batch_idx < self.batch


class TrainFor(Callback):
    """Sets the number of epochs when the training starts."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_start(self, trainer: Any, module: Any) -> None:
        trainer.fit_loop.max_epochs = self.epochs
