"""What any callback can rely on, though optimizer steps are taken by hand: hooks, and a state that is kept."""

import io
from collections.abc import Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.call import _call_callback_hooks
from pytorch_lightning.utilities.model_helpers import is_overridden

from laptime.errors import TrainingFailed

# What Lightning calls itself within a step that it takes.
_WITHIN = ("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad")
_AROUND = ("on_train_batch_start", "on_train_batch_end")


def overridden_step_hooks(callbacks: Iterable[Callback]) -> frozenset[str]:
    """The hooks within a step that some callback has."""
    return frozenset(hook for each in callbacks for hook in _WITHIN if is_overridden(hook, each, Callback))


def needs_single_steps(callback: Callback) -> bool:
    """Whether one step after the other must be shown to it. Laptime's own are made for several at once."""
    if type(callback).__module__.startswith("laptime."):
        return False
    return any(is_overridden(hook, callback, Callback) for hook in (*_WITHIN, *_AROUND))


def require_plain_states(states: Mapping[str, Any]) -> None:
    """Refuse to save what no checkpoint could be read with: loading one runs no code, and so knows plain values only.

    Args:
        states: of the callbacks, by name.

    Raises:
        TrainingFailed: names the callback.
    """
    for name, state in states.items():
        content = io.BytesIO()
        try:
            torch.save(state, content)
            content.seek(0)
            torch.load(content, weights_only=True)
        except Exception as error:  # whatever somebody's object raises when it is written down
            raise TrainingFailed(
                f"callbacks: the state of {name.partition('{')[0]} can't be kept in a checkpoint. Let its state_dict() "
                "return numbers, texts, lists, dicts and tensors alone, none of NumPy's."
            ) from error


def call(trainer: pl.Trainer, hook: str, *args: Any) -> None:
    """Call a hook of all callbacks, which may log in it."""
    _call_callback_hooks(trainer, hook, *args)
