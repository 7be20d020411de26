"""One optimizer step: mixed precision, microbatches, mixup, clipping, DDP and sharding. Independent of Lightning."""

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
from laptime.tasks.classification import Classification
from laptime.tasks.task import Task

_AUTOCAST_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Stepper:
    """Takes optimizer steps on a network, with the loss of its task.

    Args:
        network: maps the inputs of a batch to logits.
        device: the training device.
        precision: 32-true, bf16-mixed or 16-mixed.
        num_microbatches: the number of microbatches that the batch of an optimizer step is split into.
        gradient_clip_norm: largest norm of the gradient over all parameters; None: no clipping.
        task: has the loss; None: classification without label smoothing and mixup.
        after_step: called after each optimizer step.

    Attributes:
        on_phase: called at the end of each phase of a step, with the phase's name.
        wrap: wraps a network in DDP, or returns the network itself if the ranks don't average gradients.
        schedule: the schedule that is stepped after each optimizer step; None: there is none.
        is_compiled: whether the network is compiled.
        shared: shared memory in which each rank updates its shard of the weights; None: each rank updates all weights.
        scaler: scales losses, so that float16's small gradients don't become 0; None in other precisions.
        hooks: names of the step hooks that callbacks override.
        call_hook: called with the name and the arguments of each of these hooks.
    """

    def __init__(
        self,
        network: nn.Module,
        device: Device,
        precision: str = "32-true",
        num_microbatches: int = 1,
        gradient_clip_norm: float | None = None,
        task: Task | None = None,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.network = network
        self.device = device
        self.precision = precision
        self.num_microbatches = num_microbatches
        self.gradient_clip_norm = gradient_clip_norm
        self.task = task or Classification()
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
        """Average gradients over the ranks from now on.

        Args:
            wrap: wraps a network in DistributedDataParallel.
        """
        self.wrap = wrap
        self._trained = wrap(self.network)

    def shard(self, shared: SharedMemory) -> None:
        """Let each rank update only its shard of the weights from now on.

        Args:
            shared: the memory of DDP's communication hook.
        """
        self.shared = shared
        shared.collects = True

    @property
    def ddp(self) -> DistributedDataParallel | None:
        """DDP's wrapper around the network; None without DDP."""
        return self._trained if isinstance(self._trained, DistributedDataParallel) else None

    def sharded(self, optimizer: Optimizer) -> ShardedOptimizer | None:
        """Return the sharded optimizer that takes this optimizer's steps; None: the optimizer takes them itself."""
        return self._sharded if self._sharded is not None and self._sharded.optimizer is optimizer else None

    def take(self, optimizer: Optimizer, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Take one optimizer step.

        Args:
            optimizer: updates the network's parameters.
            inputs, targets: the batch.

        Returns:
            The mean loss over the batch, a scalar, and the logits, both detached.
        """
        result = self._backward(inputs, targets)
        self._update(optimizer)
        if self.schedule is not None:
            self.schedule.step()
        self.after_step()
        self.on_phase("optimizer")
        return result

    def _backward(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the gradients of the mean loss over a batch; return that loss and the logits, both detached."""
        inputs, mixed_targets, lam = self.task.mix(inputs, targets)
        if self.num_microbatches == 1:
            return self._backward_microbatch(inputs, targets, mixed_targets, lam, 1.0)
        size = math.ceil(len(targets) / self.num_microbatches)
        microbatches = list(zip(*(tensor.split(size) for tensor in (inputs, targets, mixed_targets)), strict=True))
        results = []
        for number, (x, y, z) in enumerate(microbatches, start=1):
            # Ranks exchange gradients once per optimizer step, not once per microbatch.
            wait = self.ddp is not None and number < len(microbatches)
            with self.ddp.no_sync() if self.ddp is not None and wait else nullcontext():
                results.append(self._backward_microbatch(x, y, z, lam, len(y) / len(targets)))
        return torch.stack([loss for loss, _ in results]).sum(), torch.cat([logits for _, logits in results])

    def _backward_microbatch(
        self, inputs: Tensor, targets: Tensor, mixed_targets: Tensor, lam: float, weight: float
    ) -> tuple[Tensor, Tensor]:
        with self.autocast():
            logits = self._trained(inputs)
            loss = self.task.training_loss(logits, targets, mixed_targets, lam)
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
        elif self.shared is not None and self.shared.is_collected:  # false in steps without synchronization
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
        """Mark the network for compilation; torch compiles it on the first call of `run_once`."""
        self.network.compile(dynamic=False)
        self.is_compiled = True

    def run_once(self, inputs: Tensor, targets: Tensor, training: bool) -> None:
        """Do a forward pass, and in training a backward pass. Then restore weights, buffers and gradients.

        Args:
            inputs, targets: a batch.
            training: whether the network is in training mode.
        """
        before = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.network.train(training)
        if training:
            self._backward(inputs, targets)
            self.network.zero_grad()
        else:
            with torch.no_grad(), self.autocast():
                self.network(inputs)
        self.network.load_state_dict(before)
        self.network.train()

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the autocast context of a forward pass."""
        # One context per batch, never one around several steps: within a context torch caches low-precision copies of
        # the weights, which an optimizer step makes stale.
        return autocast(self.precision, self.device)


def autocast(precision: str, device: Device) -> AbstractContextManager[Any]:
    """Return the autocast context of a forward pass in this precision, or a null context for 32-true."""
    dtype = _AUTOCAST_DTYPES.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device.used, dtype=dtype)
