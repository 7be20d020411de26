"""Calls the step hooks of callbacks, because Laptime takes the optimizer steps itself, and checks callback states."""

import io
from collections.abc import Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.call import _call_callback_hooks
from pytorch_lightning.utilities.model_helpers import is_overridden

from laptime.errors import TrainingFailed

# With automatic optimization Lightning calls these itself. In Laptime's steps, the Stepper calls them.
_STEP_HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad")
_BATCH_HOOKS = ("on_train_batch_start", "on_train_batch_end")


def overridden_step_hooks(callbacks: Iterable[Callback]) -> frozenset[str]:
    """Return the names of the step hooks that at least one callback overrides."""
    return frozenset(name for callback in callbacks for name in _STEP_HOOKS if is_overridden(name, callback, Callback))


def needs_single_steps(callback: Callback) -> bool:
    """Whether a callback needs one optimizer step per Lightning batch. Laptime's own callbacks handle step groups."""
    if type(callback).__module__.startswith("laptime."):
        return False
    return any(is_overridden(name, callback, Callback) for name in (*_STEP_HOOKS, *_BATCH_HOOKS))


def require_plain_states(states: Mapping[str, Any]) -> None:
    """Refuse to save callback states that torch.load(weights_only=True) can't read back.

    Args:
        states: the callbacks' states, by name.

    Raises:
        TrainingFailed: names the callback.
    """
    for name, state in states.items():
        content = io.BytesIO()
        try:
            torch.save(state, content)
            content.seek(0)
            torch.load(content, weights_only=True)
        except Exception as error:  # a user's object may raise anything when it is pickled
            raise TrainingFailed(
                f"callbacks: a checkpoint can't hold the state of {name.partition('{')[0]}. Its state_dict() must "
                "return only numbers, strings, lists, dicts and tensors, and no NumPy values."
            ) from error


def call(trainer: pl.Trainer, hook: str, *args: Any) -> None:
    """Call a hook of all callbacks, as Lightning does, so that they may log in it."""
    # Lightning 2.6 has no public function for this; not reported upstream.
    _call_callback_hooks(trainer, hook, *args)
