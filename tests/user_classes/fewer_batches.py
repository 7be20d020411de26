"""Callbacks that make the Trainer use fewer batches or samples than the data set has."""

from typing import Any

from pytorch_lightning.callbacks import Callback


class LimitBatches(Callback):
    """Sets the Trainer's `limit_..._batches`, as some callbacks for quick trials do."""

    def __init__(self, **limits: float) -> None:
        self.limits = limits

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        for stage, limit in self.limits.items():
            setattr(trainer, f"limit_{stage}_batches", limit)


class EndEpoch(Callback):
    """Ends each epoch before a batch, counted from 0."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        # Lightning uses only the return value of the module's hook.
        module.on_train_batch_start = lambda batch, batch_idx: -1 if batch_idx == self.batch else None


class HalveBatches(Callback):
    """Removes the second half of the samples of each optimizer step."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        batch[:] = [(images[: len(labels) // 2], labels[: len(labels) // 2]) for images, labels in batch]
