"""One optimizer step: mixed precision, microbatches, mixup, clipping, DDP and sharding. Knows nothing of Lightning."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from laptime.lap.phases import OnPhase, ignore_phase
from laptime.machine.device import Device
from laptime.ranks.sharded_optimizer import ShardedOptimizer
from laptime.ranks.shared_memory import SharedMemory
from laptime.schedulers.step_schedule import StepSchedule
from laptime.training.mixup import Mixup, mixed_loss

_AUTOCAST_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Stepper:
    """Takes optimizer steps on a network with cross entropy.

    Args:
        network: images (B, C, H, W), float32, to logits (B, num_classes).
        device: that trains.
        precision: 32-true, bf16-mixed or 16-mixed.
        num_microbatches: parts in which the batch of an optimizer step is computed.
        gradient_clip_norm: largest norm of the gradient over all parameters; None: no clipping.
        label_smoothing: share of each training label that is spread evenly over all classes.
        mixup_alpha: how evenly two images each are mixed while training; 0: not at all.
        after_step: called when a step has been taken.

    Attributes:
        on_phase: called with the name of each part of a step where it ends.
        wrap: makes of a network what trains: DDP's wrapper, where gradients are averaged.
        schedule: is stepped after each optimizer step; None: none is.
        is_compiled: whether the network is.
        shared: memory that the ranks update the weights in, each its share; None: each updates all of its own.
        scaler: scales losses, so that float16's small gradients don't vanish; None: another precision.
        hooks: names of the hooks within a step that somebody wants to be told of.
        call_hook: called with the name of each of these hooks, and its arguments.
    """

    def __init__(
        self,
        network: nn.Module,
        device: Device,
        precision: str = "32-true",
        num_microbatches: int = 1,
        gradient_clip_norm: float | None = None,
        label_smoothing: float = 0.0,
        mixup_alpha: float = 0.0,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.network = network
        self.device = device
        self.precision = precision
        self.num_microbatches = num_microbatches
        self.gradient_clip_norm = gradient_clip_norm
        self.label_smoothing = label_smoothing
        self.mixup = Mixup(mixup_alpha) if mixup_alpha else None
        self.after_step = after_step
        self.schedule: StepSchedule | None = None
        self.scaler = torch.amp.GradScaler(device.used) if precision == "16-mixed" else None
        self.on_phase: OnPhase = ignore_phase
        self.wrap: Callable[[nn.Module], nn.Module] = lambda network: network
        self.is_compiled = False
        self.shared: SharedMemory | None = None
        self.hooks: frozenset[str] = frozenset()
        self.call_hook: Callable[..., None] = lambda hook, *args: None
        self._trained = network
        self._sharded: ShardedOptimizer | None = None

    def distribute(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        """Average the gradients over the ranks from now on.

        Args:
            wrap: makes a DistributedDataParallel of a network.
        """
        self.wrap = wrap
        self._trained = wrap(self.network)

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
        return self._trained if isinstance(self._trained, DistributedDataParallel) else None

    def sharded(self, optimizer: Optimizer) -> ShardedOptimizer | None:
        """What has taken an optimizer's steps, a share on each rank; None: it takes them itself."""
        return self._sharded if self._sharded is not None and self._sharded.optimizer is optimizer else None

    def take(self, optimizer: Optimizer, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One optimizer step.

        Args:
            optimizer: of the network's parameters.
            images: (B, C, H, W), float32.
            labels: (B,), int64.

        Returns:
            The mean loss over the batch, a scalar, and the logits, (B, num_classes), both without a graph.
        """
        result = self._backward(images, labels)
        self._update(optimizer)
        if self.schedule is not None:
            self.schedule.step()
        self.after_step()
        self.on_phase("optimizer")
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
            logits = self._trained(images)
            loss = mixed_loss(logits, labels, others, share, self.label_smoothing)
        if weight != 1.0:
            loss = loss * weight
        self.on_phase("forward")
        if "on_before_backward" in self.hooks:
            self.call_hook("on_before_backward", loss)
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        if "on_after_backward" in self.hooks:
            self.call_hook("on_after_backward")
        self.on_phase("backward")
        return loss.detach(), logits.detach()

    def _update(self, optimizer: Optimizer) -> None:
        are_gradients_used = self.gradient_clip_norm is not None or "on_before_optimizer_step" in self.hooks
        if self.scaler is not None and are_gradients_used:
            self.scaler.unscale_(optimizer)
        if "on_before_optimizer_step" in self.hooks:
            self.call_hook("on_before_optimizer_step", optimizer)
        if self.gradient_clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.gradient_clip_norm)
        if self.scaler is not None:
            self.scaler.step(optimizer)
            self.scaler.update()
        elif self.shared is not None and self.shared.is_collected:  # not so in steps without synchronization
            sharded = self.sharded(optimizer)
            if sharded is None:
                sharded = self._sharded = ShardedOptimizer(optimizer, self.shared)
            sharded.step()
        else:
            optimizer.step()
        if "on_before_zero_grad" in self.hooks:
            self.call_hook("on_before_zero_grad", optimizer)
        optimizer.zero_grad()

    def compile(self) -> None:
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
        return autocast(self.precision, self.device)


def autocast(precision: str, device: Device) -> AbstractContextManager[Any]:
    """The context of a forward pass in this precision: mixed, or nothing."""
    dtype = _AUTOCAST_DTYPES.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device.used, dtype=dtype)
