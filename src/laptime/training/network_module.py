"""The LightningModule: trains any network for a task, with several optimizer steps per Lightning batch."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from laptime.data.datamodule import DataModule
from laptime.data.order import epoch_seed
from laptime.errors import TrainingFailed
from laptime.lap.epoch_sums import Means, Sums
from laptime.lap.timed_loader import Batch
from laptime.ranks.rank import Rank
from laptime.ranks.stopping import StopRequest
from laptime.schedulers.step_schedule import StepSchedule
from laptime.training import callback_hooks
from laptime.training.checkpoints import IDENTITY
from laptime.training.stepper import Stepper
from laptime.training.weight_average import WeightAverage

_REMEDIES = "Try a smaller optimizer.lr, training.gradient_clip_norm=1 or training.precision=32-true."


class NetworkModule(pl.LightningModule):
    """Trains a network for the stepper's task.

    One Lightning batch is a step group: a list of batches, one per optimizer step. Lightning's bookkeeping then happens
    once per group. This requires manual optimization. Losses and hits stay on the device as tensors until the epoch
    ends.

    Args:
        stepper: takes the optimizer steps.
        make_optimizer: takes the network's parameters, returns an optimizer.
        make_scheduler: takes the optimizer, returns a learning rate scheduler or None. A StepSchedule is stepped after
            each optimizer step, any other scheduler once per epoch.
        make_average: takes the network, returns the average of its weights, which is evaluated and saved instead of
            them.
        seed: the seed, which with the epoch and the rank determines all randomness of the training.
        stop: the request to end the training early, if there is one.
        identity: plain values that identify the experiment; they are written into every checkpoint.
        rank: this process.
        lap_word: what an epoch is, for messages: `epoch`, or `lap` if it is a number of steps.

    Attributes:
        stepper, make_optimizer, make_scheduler, make_average: the arguments.
        network: the stepper's network.
        train_sums: losses and hits of this epoch so far, on this rank.
        val_means, test_means: results of the last validation and test, over all ranks; None before the first.
    """

    def __init__(
        self,
        stepper: Stepper,
        make_optimizer: Callable[..., Optimizer],
        make_scheduler: Callable[[Optimizer], LRScheduler | None],
        make_average: Callable[[nn.Module], WeightAverage] = WeightAverage,
        seed: int = 0,
        stop: StopRequest | None = None,
        identity: Mapping[str, Any] | None = None,
        rank: Rank = Rank(),  # noqa: B008
        lap_word: str = "epoch",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = stepper.network
        self.stepper = stepper
        self.seed = seed
        self.rank = rank
        self.lap_word = lap_word
        self.make_optimizer = make_optimizer
        self.make_scheduler = make_scheduler
        self.make_average = make_average
        self._average = make_average(stepper.network)
        stepper.after_step = self._average.after_step
        self._stop = stop or StopRequest()
        self._identity = dict(identity or {})
        self.train_sums = Sums()
        self.val_sums = Sums()
        self.test_sums = Sums()
        self.val_means: Means | None = None
        self.test_means: Means | None = None
        self._hooks: frozenset[str] = frozenset()

    def forward(self, inputs: Tensor) -> Tensor:
        """Map the inputs of a batch to logits."""
        logits: Tensor = self.network(inputs)
        return logits

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.network.parameters())
        scheduler = self.make_scheduler(optimizer)
        self.stepper.schedule = scheduler if isinstance(scheduler, StepSchedule) else None
        return {"optimizer": optimizer} if scheduler is None else {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_fit_start(self) -> None:
        self._hooks = callback_hooks.overridden_step_hooks(self.trainer.callbacks)  # type: ignore[attr-defined]
        self.stepper.call_hook = partial(callback_hooks.call, self.trainer)

    def on_train_epoch_start(self) -> None:
        # Dropout and augmentation depend on the seed and the epoch alone, so a resumed run equals an uninterrupted one.
        seed = epoch_seed(self.seed, self.current_epoch, self.rank.rank)
        torch.manual_seed(seed)
        self.stepper.task.start_epoch(seed)
        self.train_sums = Sums()

    def training_step(self, step_group: list[Batch], batch_idx: int) -> None:
        """Take one optimizer step per batch of the group.

        Raises:
            TrainingFailed: a loss is infinite or not a number; names epoch and step.
        """
        optimizer = self._optimizer()
        if self._stop.has_deadline:
            self._stop.expired = self.rank.any_rank(self._stop.is_overdue())  # all ranks stop at the same step
        self.stepper.hooks = self._hooks
        try:
            self.take_steps(optimizer, step_group)
        finally:
            self.stepper.hooks = frozenset()  # measurements take steps, too; callbacks must not see them
        if self.trainer.is_last_batch:
            self._average.after_epoch(self.current_epoch)
        # Lightning counts only steps of its own optimizer wrapper, which would cost 2% of a small network's step.
        # Seen in Lightning 2.6: https://github.com/Lightning-AI/pytorch-lightning/issues/16143
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        for _ in step_group:
            progress.increment_ready()
            progress.increment_completed()

    def take_steps(self, optimizer: Optimizer, step_group: list[Batch]) -> None:
        """Take one optimizer step per batch, and add up their losses and hits.

        Raises:
            TrainingFailed: a loss is infinite or not a number; names epoch and step.
        """
        losses, logits = [], []
        for inputs, targets in step_group:
            if self._stop.requested:
                self._stop.act()
            loss, batch_logits = self.stepper.take(optimizer, inputs, targets)
            losses.append(loss)
            if self.stepper.task.has_accuracy:  # otherwise nobody reads the logits, which may take much memory
                logits.append(batch_logits)
        self._add_to_sums([targets for _, targets in step_group], losses, logits)
        self.stepper.on_phase("rest")

    def _add_to_sums(self, targets: list[Tensor], losses: list[Tensor], logits: list[Tensor]) -> None:
        stacked = torch.stack(losses)
        first_step = self.train_sums.num_batches
        hits = self.stepper.task.num_hits(torch.cat(logits), torch.cat(targets)) if logits else None
        self.train_sums.add(stacked, hits, [len(batch_targets) for batch_targets in targets])
        finite = torch.isfinite(stacked)
        if not finite.all():
            step = int(finite.logical_not().nonzero()[0]) + first_step
            value = float(stacked[step - first_step])
            raise TrainingFailed(
                f"the loss became {value} in {self.lap_word} {self.current_epoch}, step {step}, counted from 0. "
                f"{_REMEDIES}",
                self.current_epoch,
                step,
            )

    def on_train_epoch_end(self) -> None:
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(float(self.trainer.callback_metrics["val_loss"]))
        elif isinstance(scheduler, LRScheduler) and self.stepper.schedule is None:
            scheduler.step()

    def on_validation_epoch_start(self) -> None:
        self._average.swap()
        self._broadcast_buffers()
        self.val_sums = Sums()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, self.val_sums)

    def on_validation_epoch_end(self) -> None:
        self._average.swap()
        # logger=False: this is for callbacks that monitor a metric. The epoch recorder writes to the loggers.
        self.val_means = self.val_sums.means(self.rank)
        self._require_valid(self.val_means, "validation")
        self.log("val_loss", self.val_means.loss, logger=False)
        if self.val_means.accuracy is not None:
            self.log("val_accuracy", self.val_means.accuracy, logger=False)

    def on_test_epoch_start(self) -> None:
        self._average.swap()
        self._broadcast_buffers()
        self.test_sums = Sums()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, self.test_sums)

    def on_test_epoch_end(self) -> None:
        self._average.swap()
        self.test_means = self.test_sums.means(self.rank)
        self._require_valid(self.test_means, "test")

    def _broadcast_buffers(self) -> None:
        """Let all ranks evaluate what a checkpoint holds: the first rank's buffers, e.g. BatchNorm's statistics."""
        if self.rank.is_distributed:
            for buffer in self.network.buffers():
                dist.broadcast(buffer, src=0)

    def _require_valid(self, means: "Means", stage: str) -> None:
        """Refuse a loss that is not finite, and results over another number of samples than the record will state."""
        epoch, data = self.current_epoch, self.trainer.datamodule  # type: ignore[attr-defined]
        num_samples_key = {"validation": "num_val", "test": "num_test"}[stage]
        if isinstance(data, DataModule) and means.num_samples != getattr(data, num_samples_key):
            raise TrainingFailed(
                f"the {stage} used {means.num_samples} of {getattr(data, num_samples_key)} samples, because a callback "
                "changed the Trainer's batches. Remove that callback; to use fewer samples, set dataset.limit.",
                epoch,
            )
        if not math.isfinite(means.loss):
            raise TrainingFailed(
                f"the {stage} loss is {means.loss} after {self.lap_word} {epoch}, counted from 0. {_REMEDIES}", epoch
            )

    def _evaluate(self, batch: Batch, sums: "Sums") -> None:
        # A stop request waits for the end of the validation, because its epoch is trained and timed already.
        if self._stop.requested and self.trainer.testing:
            self._stop.act()
        inputs, targets = batch
        task = self.stepper.task
        with self.stepper.autocast():
            logits = self.network(inputs)
        sums.add(task.loss(logits, targets).unsqueeze(0), task.num_hits(logits, targets), [len(targets)])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[IDENTITY] = self._identity
        callback_hooks.require_plain_states(checkpoint["callbacks"])
        if self._average.num_averaged:
            checkpoint["trained_state_dict"] = checkpoint["state_dict"]
            checkpoint["state_dict"] = self._average.averaged(checkpoint["state_dict"], "network.")
            checkpoint["num_averaged"] = self._average.num_averaged
        if self.stepper.scaler is not None:
            checkpoint["grad_scaler"] = self.stepper.scaler.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "num_averaged" in checkpoint:
            self._average.restore(checkpoint["state_dict"], "network.", checkpoint["num_averaged"])
            checkpoint["state_dict"] = checkpoint["trained_state_dict"]  # Lightning loads it next
        if self.stepper.scaler is not None and "grad_scaler" in checkpoint:
            self.stepper.scaler.load_state_dict(checkpoint["grad_scaler"])

    def _optimizer(self) -> Optimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        return optimizer
