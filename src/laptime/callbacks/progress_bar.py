"""A Rich progress bar that is redrawn at fixed intervals, and only on a terminal."""

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from laptime.lap.epoch_recorder import CountsSamples, EpochRecorder
from laptime.lap.timed_loader import TimedLoader
from laptime.text import clock


class ProgressBar(Callback):
    """Shows the epoch (or lap), its progress, loss and score so far, samples/s and the remaining time, on stderr.

    If the module does not count samples, the bar shows only the epoch and its progress. Reading the loss waits for the
    device, so the bar reads it only when it is redrawn.

    Args:
        refresh_s: seconds between two redraws.

    Raises:
        ValueError: refresh_s is not above 0.
    """

    def __init__(self, refresh_s: float = 0.5) -> None:
        if not refresh_s > 0:
            raise ValueError(f"refresh_s={refresh_s}: must be above 0.")
        self.refresh_s = refresh_s
        self.console = Console(stderr=True)
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._next_at = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.console.is_terminal or not trainer.is_global_zero:
            return
        self._progress = Progress(
            TextColumn("{task.fields[epoch]}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[figures]}"),
            console=self.console,
            auto_refresh=False,
            transient=True,
        )
        self._task = self._progress.add_task("train", epoch="", figures="")
        self._progress.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._next_at = time.monotonic() + self.refresh_s

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # A redraw after the last step would be in the epoch's time, so it is skipped.
        if self._progress is None or trainer.is_last_batch or time.monotonic() < self._next_at:
            return
        self._next_at = time.monotonic() + self.refresh_s
        self._redraw(self._progress, trainer, pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._progress is not None:
            self._redraw(self._progress, trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._end()

    def _end(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _redraw(self, progress: Progress, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loader, epochs = trainer.train_dataloader, trainer.max_epochs or 1
        done, total, figures = trainer.fit_loop.batch_idx + 1, trainer.num_training_batches, ""
        word = loader.sampler.lap_word if isinstance(loader, TimedLoader) else "epoch"
        if isinstance(pl_module, CountsSamples) and isinstance(loader, TimedLoader):
            sums = pl_module.train_sums
            done, total = sums.num_samples, len(loader.sampler)
            means = sums.local_means()
            parts = [f"loss {means.loss:.4f}"] + [
                f"{recorder.score.name} {recorder.score.number(value)}"
                for recorder in trainer.callbacks  # type: ignore[attr-defined]
                if isinstance(recorder, EpochRecorder) and (value := recorder.score_of(means)) is not None
            ]
            if loader.clock.started_at is None:  # the epoch's time is over
                parts.append("validating")
            else:
                rate = done / (time.perf_counter() - loader.clock.started_at)
                left = (epochs - trainer.current_epoch) * total - done
                parts += [f"{rate * loader.rank.world_size:,.0f} samples/s", f"{clock(left / rate)} left"]
            figures = "  ".join(parts)
        epoch = f"{word} {trainer.current_epoch + 1}/{epochs}"
        progress.update(self._task, completed=done, total=total, epoch=epoch, figures=figures)
        progress.refresh()
