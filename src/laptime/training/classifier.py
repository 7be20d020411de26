"""The LightningModule: classification with any network, several optimizer steps per Lightning batch."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from laptime.data.datamodule import DataModule
from laptime.data.order import epoch_seed
from laptime.errors import TrainingFailed
from laptime.lap.epoch_sums import Means, Sums
from laptime.lap.step_clock import OnPart, ignore_part
from laptime.lap.timed_loader import Batch
from laptime.machine.device import Device
from laptime.ranks.rank import Rank
from laptime.ranks.sharded_optimizer import ShardedOptimizer
from laptime.ranks.shared_memory import SharedMemory
from laptime.ranks.stopping import StopRequest
from laptime.schedulers.step_schedule import StepSchedule
from laptime.training import step_hooks
from laptime.training.checkpoints import IDENTITY
from laptime.training.mixup import Mixup, mixed_loss
from laptime.training.weight_average import WeightAverage

_REMEDIES = "Try a smaller optimizer.lr, training.gradient_clip_norm=1 or training.precision=32-true."
_AUTOCAST_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Classifier(pl.LightningModule):
    """Trains a network with cross entropy.

    One Lightning batch carries a list of batches, one per optimizer step, so that Lightning's bookkeeping is paid once
    for all of them; that is why the optimization is manual. Losses and hits are kept as tensors on the device and read
    once per epoch.

    Args:
        network: images (B, C, H, W), float32, to logits (B, num_classes).
        make_optimizer: from the network's parameters to an optimizer.
        make_scheduler: from the optimizer to a learning rate scheduler, or to None. A StepSchedule is stepped after
            each optimizer step, any other once per epoch.
        device: that trains.
        seed: what is random while training follows from it, the epoch and the rank.
        precision: 32-true, bf16-mixed or 16-mixed.
        num_microbatches: parts in which the batch of an optimizer step is computed.
        gradient_clip_norm: largest norm of the gradient over all parameters; None: no clipping.
        label_smoothing: share of each training label that is spread evenly over all classes.
        mixup_alpha: how evenly two images each are mixed while training; 0: not at all.
        make_average: from the network to the average of its weights, which is evaluated and saved instead of them.
        stop: says when training is to end early.
        identity: plain values that are written into every checkpoint, to know it by.
        rank: this process.

    Attributes:
        on_part: called with the name of each part of a step where it ends.
        wrap: makes of a network what trains: DDP's wrapper, where gradients are averaged.
        make_optimizer, make_scheduler, make_average: as given.
        schedule: is stepped after each optimizer step; None: none is.
        is_compiled: whether the network is.
        shared: memory that the ranks update the weights in, each its share; None: each updates all of its own.
        scaler: scales losses, so that float16's small gradients don't vanish; None: another precision.
    """

    def __init__(
        self,
        network: nn.Module,
        make_optimizer: Callable[..., Optimizer],
        make_scheduler: Callable[[Optimizer], LRScheduler | None],
        device: Device,
        seed: int,
        precision: str = "32-true",
        num_microbatches: int = 1,
        gradient_clip_norm: float | None = None,
        label_smoothing: float = 0.0,
        mixup_alpha: float = 0.0,
        make_average: Callable[[nn.Module], WeightAverage] = WeightAverage,
        stop: StopRequest | None = None,
        identity: Mapping[str, Any] | None = None,
        rank: Rank = Rank(),  # noqa: B008
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = network
        self.seed = seed
        self.rank = rank
        self.num_microbatches = num_microbatches
        self.gradient_clip_norm = gradient_clip_norm
        self.make_optimizer = make_optimizer
        self.make_scheduler = make_scheduler
        self.schedule: StepSchedule | None = None
        self.label_smoothing = label_smoothing
        self.mixup = Mixup(mixup_alpha) if mixup_alpha else None
        self.make_average = make_average
        self._average = make_average(network)
        self._device_in_use = device
        self._precision = precision
        self.scaler = torch.amp.GradScaler(device.used) if precision == "16-mixed" else None
        self._stop = stop or StopRequest()
        self._identity = dict(identity or {})
        self.on_part: OnPart = ignore_part
        self.wrap: Callable[[nn.Module], nn.Module] = lambda network: network
        self.is_compiled = False
        self.train_sums = Sums()
        self.val_sums = Sums()
        self.test_sums = Sums()
        self.val_means: Means | None = None
        self.test_means: Means | None = None
        # In a list, so that DDP's wrapper is no submodule: checkpoints hold the network alone.
        self._trained = [network]
        self.shared: SharedMemory | None = None
        self._sharded: ShardedOptimizer | None = None
        self._hooks: frozenset[str] = frozenset()
        self._told: frozenset[str] = frozenset()

    def distribute(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        """Average the gradients over the ranks from now on.

        Args:
            wrap: makes a DistributedDataParallel of a network.
        """
        self.wrap = wrap
        self._trained = [wrap(self.network)]

    def shard(self, shared: SharedMemory) -> None:
        """Let each rank update its share of the weights from now on.

        Args:
            shared: of DDP's hook.
        """
        self.shared = shared
        shared.collects = True

    @property
    def ddp(self) -> DistributedDataParallel | None:
        """DDP's wrapper around the network; None where there is none."""
        trained = self._trained[0]
        return trained if isinstance(trained, DistributedDataParallel) else None

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, num_classes)."""
        logits: Tensor = self.network(images)
        return logits

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.network.parameters())
        scheduler = self.make_scheduler(optimizer)
        self.schedule = scheduler if isinstance(scheduler, StepSchedule) else None
        return {"optimizer": optimizer} if scheduler is None else {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_fit_start(self) -> None:
        self._hooks = step_hooks.heard(self.trainer.callbacks)  # type: ignore[attr-defined]

    def on_train_epoch_start(self) -> None:
        # Dropout and augmentation follow from (seed, epoch), so that a resumed run goes on as the undisturbed one.
        seed = epoch_seed(self.seed, self.current_epoch, self.rank.rank)
        torch.manual_seed(seed)
        if self.mixup is not None:
            self.mixup.start(seed)
        self.train_sums = Sums()

    def training_step(self, execution: list[Batch], batch_idx: int) -> None:
        """Take one optimizer step per batch of the list.

        Raises:
            TrainingFailed: a loss is infinite or not a number; names epoch and step.
        """
        optimizer = self._optimizer()
        if self._stop.has_deadline:
            self._stop.expired = self.rank.any(self._stop.is_overdue())  # all ranks stop at the same step
        self._told = self._hooks
        try:
            self.take_steps(optimizer, execution)
        finally:
            self._told = frozenset()  # what else takes steps is no training
        if self.trainer.is_last_batch:
            self._average.after_epoch(self.current_epoch)
        # Lightning counts the steps that its own wrapper takes; the wrapper would cost 2% of a small network's step.
        # Seen with Lightning 2.6: https://github.com/Lightning-AI/pytorch-lightning/issues/16143
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        for _ in execution:
            progress.increment_ready()
            progress.increment_completed()

    def take_steps(self, optimizer: Optimizer, execution: list[Batch]) -> None:
        """One optimizer step per batch; notes their losses and hits.

        Raises:
            TrainingFailed: a loss is infinite or not a number; names epoch and step.
        """
        losses, logits = [], []
        for images, labels in execution:
            if self._stop.requested:
                self._stop.act()
            loss, batch_logits = self.take_step(optimizer, images, labels)
            losses.append(loss)
            logits.append(batch_logits)
        self._note([labels for _, labels in execution], losses, logits)
        self.on_part("rest")

    def take_step(self, optimizer: Optimizer, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One optimizer step.

        Args:
            optimizer: of the network's parameters.
            images: (B, C, H, W), float32.
            labels: (B,), int64.

        Returns:
            The mean loss over the batch, a scalar, and the logits, (B, num_classes), both without a graph.
        """
        result = self._backward(images, labels)
        self._step(optimizer)
        if self.schedule is not None:
            self.schedule.step()
        self._average.after_step()
        self.on_part("optimizer")
        return result

    def mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
        """What is trained on instead of a batch: mixed by mixup, or the batch as it is.

        Args:
            images: (B, C, H, W), float32.
            labels: (B,), int64.

        Returns:
            The images, the labels of what was mixed in, and the share of the batch's own labels, in [0, 1].
        """
        return (images, labels, 1.0) if self.mixup is None else self.mixup(images, labels)

    def _backward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the mean loss over a batch; returns that loss and the logits, neither with a graph."""
        images, others, share = self.mix(images, labels)
        if self.num_microbatches == 1:
            return self._backward_part(images, labels, others, share, 1.0)
        part_size = math.ceil(len(labels) / self.num_microbatches)
        parts = list(zip(*(each.split(part_size) for each in (images, labels, others)), strict=True))
        results = []
        for number, (x, y, z) in enumerate(parts, start=1):
            # Ranks exchange gradients once per optimizer step, not once per part.
            wait = self.ddp is not None and number < len(parts)
            with self.ddp.no_sync() if self.ddp is not None and wait else nullcontext():
                results.append(self._backward_part(x, y, z, share, len(y) / len(labels)))
        return torch.stack([loss for loss, _ in results]).sum(), torch.cat([logits for _, logits in results])

    def _backward_part(
        self, images: Tensor, labels: Tensor, others: Tensor, share: float, weight: float
    ) -> tuple[Tensor, Tensor]:
        with self.autocast():
            logits = self._trained[0](images)
            loss = mixed_loss(logits, labels, others, share, self.label_smoothing)
        if weight != 1.0:
            loss = loss * weight
        self.on_part("forward")
        self._tell("on_before_backward", loss)
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        self._tell("on_after_backward")
        self.on_part("backward")
        return loss.detach(), logits.detach()

    def _step(self, optimizer: Optimizer) -> None:
        are_gradients_used = self.gradient_clip_norm is not None or "on_before_optimizer_step" in self._told
        if self.scaler is not None and are_gradients_used:
            self.scaler.unscale_(optimizer)
        self._tell("on_before_optimizer_step", optimizer)
        if self.gradient_clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.gradient_clip_norm)
        if self.scaler is not None:
            self.scaler.step(optimizer)
            self.scaler.update()
        elif self.shared is not None and self.shared.is_collected:  # not so in steps without synchronisation
            sharded = self.sharded(optimizer)
            if sharded is None:
                sharded = self._sharded = ShardedOptimizer(optimizer, self.shared)
            sharded.step()
        else:
            optimizer.step()
        self._tell("on_before_zero_grad", optimizer)
        optimizer.zero_grad()

    def _tell(self, hook: str, *args: Any) -> None:
        if hook in self._told:
            step_hooks.tell(self.trainer, hook, *args)

    def sharded(self, optimizer: Optimizer) -> ShardedOptimizer | None:
        """What has taken an optimizer's steps, a share on each rank; None: it takes them itself."""
        return self._sharded if self._sharded is not None and self._sharded.optimizer is optimizer else None

    def _note(self, labels: list[Tensor], losses: list[Tensor], logits: list[Tensor]) -> None:
        stacked = torch.stack(losses)
        first_step = self.train_sums.num_batches
        hits = (torch.cat(logits).argmax(1) == torch.cat(labels)).sum()
        self.train_sums.add(stacked, hits, [len(part) for part in labels])
        finite = torch.isfinite(stacked)
        if not finite.all():
            step = int(finite.logical_not().nonzero()[0]) + first_step
            value = float(stacked[step - first_step])
            raise TrainingFailed(
                f"the loss became {value} in epoch {self.current_epoch}, step {step}, counted from 0. {_REMEDIES}",
                self.current_epoch,
                step,
            )

    def on_train_epoch_end(self) -> None:
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(float(self.trainer.callback_metrics["val_loss"]))
        elif isinstance(scheduler, LRScheduler) and self.schedule is None:
            scheduler.step()

    def on_validation_epoch_start(self) -> None:
        self._average.swap()
        self._share_buffers()
        self.val_sums = Sums()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, self.val_sums)

    def on_validation_epoch_end(self) -> None:
        self._average.swap()
        # For callbacks that watch a metric; what is logged is written by the epoch recorder.
        self.val_means = self.val_sums.means(self.rank)
        self._require_sound(self.val_means, "validation")
        self.log_dict({"val_loss": self.val_means.loss, "val_accuracy": self.val_means.accuracy}, logger=False)

    def on_test_epoch_start(self) -> None:
        self._average.swap()
        self._share_buffers()
        self.test_sums = Sums()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, self.test_sums)

    def on_test_epoch_end(self) -> None:
        self._average.swap()
        self.test_means = self.test_sums.means(self.rank)
        self._require_sound(self.test_means, "test")

    def _share_buffers(self) -> None:
        """All ranks evaluate the network that a checkpoint holds: batch norm's statistics of the first rank."""
        if self.rank.is_distributed:
            for buffer in self.network.buffers():
                dist.broadcast(buffer, src=0)

    def _require_sound(self, means: "Means", part: str) -> None:
        """Refuse figures that are no numbers, or of other samples than the record will say."""
        epoch, data = self.current_epoch, self.trainer.datamodule  # type: ignore[attr-defined]
        expected = {"validation": "num_val", "test": "num_test"}[part]
        if isinstance(data, DataModule) and means.num_samples != getattr(data, expected):
            raise TrainingFailed(
                f"the {part} saw {means.num_samples} of {getattr(data, expected)} samples: a callback has changed the "
                "Trainer's batches. Leave them as they are; dataset.limit takes fewer samples.",
                epoch,
            )
        if not math.isfinite(means.loss):
            raise TrainingFailed(
                f"the {part} loss is {means.loss} after epoch {epoch}, counted from 0. {_REMEDIES}", epoch
            )

    def _evaluate(self, batch: Batch, sums: "Sums") -> None:
        # While it validates, a run waits: the epoch that is being validated is trained and timed already.
        if self._stop.requested and self.trainer.testing:
            self._stop.act()
        images, labels = batch
        with self.autocast():
            logits = self.network(images)
        loss = F.cross_entropy(logits.float(), labels)
        sums.add(loss.unsqueeze(0), (logits.argmax(1) == labels).sum(), [len(labels)])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[IDENTITY] = self._identity
        step_hooks.require_plain_states(checkpoint["callbacks"])
        if self._average.num_averaged:
            checkpoint["trained_state_dict"] = checkpoint["state_dict"]
            checkpoint["state_dict"] = self._average.averaged(checkpoint["state_dict"], "network.")
            checkpoint["num_averaged"] = self._average.num_averaged
        if self.scaler is not None:
            checkpoint["grad_scaler"] = self.scaler.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "num_averaged" in checkpoint:
            self._average.restore(checkpoint["state_dict"], "network.", checkpoint["num_averaged"])
            checkpoint["state_dict"] = checkpoint["trained_state_dict"]  # Lightning loads it next
        if self.scaler is not None and "grad_scaler" in checkpoint:
            self.scaler.load_state_dict(checkpoint["grad_scaler"])

    def compile_network(self) -> None:
        """Compile the network; `run_once` makes torch do the work."""
        self.network.compile(dynamic=False)
        self.is_compiled = True

    def run_once(self, images: Tensor, labels: Tensor, training: bool) -> None:
        """One forward pass, with a backward pass in training, that leaves no trace in weights, buffers or gradients.

        Args:
            images, labels: one batch, as a pipeline makes it.
            training: whether in training mode.
        """
        before = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.network.train(training)
        if training:
            self._backward(images, labels)
            self.network.zero_grad()
        else:
            with torch.no_grad(), self.autocast():
                self.network(images)
        self.network.load_state_dict(before)
        self.network.train()

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision, where it was asked for."""
        # Within one context, torch would keep bfloat16 copies of the weights from before the optimizer step: so one
        # context per batch, never one around several steps.
        return autocast(self._precision, self._device_in_use)

    def _optimizer(self) -> Optimizer:
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, Optimizer)
        return optimizer


def autocast(precision: str, device: Device) -> AbstractContextManager[Any]:
    """The context of a forward pass in this precision: mixed, or nothing."""
    dtype = _AUTOCAST_DTYPES.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device.used, dtype=dtype)
