"""Phases of a step, heard by hooks on a model and on optimizers, where no Trainer tells them."""

import weakref
from typing import Any

from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from laptime.hooks.guard import guarded
from laptime.hooks.timed_run import TimedRun


class ModelHooks:
    """Marks where the phases of a step end, while the warm-up's steps are taken apart and no longer.

    What lies between the end of a forward pass and the next thing that is heard (the optimizer, or the forward pass of
    the next batch) is the backward pass: the loss and the clipping of gradients are in it.

    Args:
        model: its own calls are the forward passes; submodules' are within. It isn't kept alive.
        run: is told.
    """

    def __init__(self, model: nn.Module, run: TimedRun) -> None:
        self._model = weakref.ref(model)
        self.run = run
        self.guard = run.guard
        self._handles: list[RemovableHandle] = []
        self._has_loss = False
        run.warmup.on_begin = self.open
        run.warmup.on_end = self.close

    def open(self) -> None:
        """Hear the model and all optimizers."""
        model = self._model()
        if model is None:
            return
        self._has_loss = False
        self._handles = [
            model.register_forward_pre_hook(self._before_forward),
            model.register_forward_hook(self._after_forward),
            register_optimizer_step_pre_hook(self._before_optimizer),
            register_optimizer_step_post_hook(self._after_optimizer),
        ]

    def close(self) -> None:
        """Leave no hook behind."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @guarded
    def mark(self, phase: str) -> None:
        """What was done since the last mark is that phase; after a forward pass it is the backward pass."""
        phases = self.run.warmup.phases
        if phases is not None and self.run.is_timing:
            phases.mark("backward" if self._has_loss else phase)
            self._has_loss = False

    def _before_forward(self, *_: Any) -> None:
        self.mark("rest")

    def _after_forward(self, model: nn.Module, *_: Any) -> None:
        self.mark("forward")
        self._has_loss = model.training

    def _before_optimizer(self, *_: Any) -> None:
        self.mark("rest")

    def _after_optimizer(self, *_: Any) -> None:
        self.mark("optimizer")
