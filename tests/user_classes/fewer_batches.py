"""Callbacks that let the Trainer train on, or evaluate, less than there is."""

from typing import Any

from pytorch_lightning.callbacks import Callback


class LimitBatches(Callback):
    """Sets the Trainer's limits, as some callbacks for quick trials do."""

    def __init__(self, **limits: float) -> None:
        self.limits = limits

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        for part, limit in self.limits.items():
            setattr(trainer, f"limit_{part}_batches", limit)


class EndEpoch(Callback):
    """Ends each epoch before a batch, counted from 0."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        # Lightning asks the module alone.
        module.on_train_batch_start = lambda batch, batch_idx: -1 if batch_idx == self.batch else None


class HalveBatches(Callback):
    """Lets each optimizer step see the first half of its samples."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        batch[:] = [(images[: len(labels) // 2], labels[: len(labels) // 2]) for images, labels in batch]
