"""Times the phases of a step by hooks on a model and on optimizers, for trainings without a Lightning Trainer."""

import weakref
from typing import Any

from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from laptime.hooks.guard import guarded
from laptime.hooks.timed_run import TimedRun


class ModelHooks:
    """Marks where the phases of a step end. The hooks exist only during the instrumented steps of the warm-up lap.

    The time from the end of a forward pass to the next mark (the optimizer, or the end of the batch) counts as the
    backward pass. It includes the loss and gradient clipping, and the update of the weights if no optimizer of
    torch.optim makes it.

    Args:
        model: the model whose calls are the forward passes. Only a weak reference to it is kept.
        run: the run that gets the phases.
    """

    def __init__(self, model: nn.Module, run: TimedRun) -> None:
        self._model = weakref.ref(model)
        self.run = run
        self.guard = run.guard
        self._handles: list[RemovableHandle] = []
        self._is_after_forward = False
        run.warmup.on_begin = self.open
        run.warmup.on_end = self.close

    def open(self) -> None:
        """Add the hooks to the model and to all optimizers."""
        model = self._model()
        if model is None:
            return
        self._is_after_forward = False
        self.run.warmup.has_optimizer = False
        self._handles = [
            model.register_forward_pre_hook(self._before_forward),
            model.register_forward_hook(self._after_forward),
            register_optimizer_step_pre_hook(self._before_optimizer),
            register_optimizer_step_post_hook(self._after_optimizer),
        ]

    def close(self) -> None:
        """Remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @guarded
    def mark(self, phase: str) -> None:
        """Assign the time since the last mark to a phase, or to the backward pass if a forward pass came before."""
        phases = self.run.warmup.phases
        if phases is not None and self.run.is_timing:
            phases.mark("backward" if self._is_after_forward else phase)
            self._is_after_forward = False

    def _before_forward(self, *_: Any) -> None:
        self.mark("rest")

    def _after_forward(self, model: nn.Module, *_: Any) -> None:
        self.mark("forward")
        self._is_after_forward = model.training

    def _before_optimizer(self, *_: Any) -> None:
        self.mark("rest")

    def _after_optimizer(self, *_: Any) -> None:
        self.mark("optimizer")
        self.run.warmup.has_optimizer = True
