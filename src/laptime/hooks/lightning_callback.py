"""A callback that both packages of Lightning take for their own: `lightning` and `pytorch_lightning`.

Each has a Callback class, and its Trainer wants one of them. A subclass of one could not be given to the other's, and
importing both takes seconds. So this class has all hooks itself, and says that it is of whichever class is loaded.
"""

import itertools
import sys
from typing import Any

_PACKAGES = ("lightning.pytorch.callbacks", "pytorch_lightning.callbacks")
_HOOKS = (
    "setup", "teardown", "on_fit_start", "on_fit_end", "on_sanity_check_start", "on_sanity_check_end",
    "on_train_batch_start", "on_train_batch_end", "on_train_epoch_start", "on_train_epoch_end",
    "on_validation_epoch_start", "on_validation_epoch_end", "on_test_epoch_start", "on_test_epoch_end",
    "on_predict_epoch_start", "on_predict_epoch_end", "on_validation_batch_start", "on_validation_batch_end",
    "on_test_batch_start", "on_test_batch_end", "on_predict_batch_start", "on_predict_batch_end", "on_train_start",
    "on_train_end", "on_validation_start", "on_validation_end", "on_test_start", "on_test_end", "on_predict_start",
    "on_predict_end", "on_exception", "on_save_checkpoint", "on_load_checkpoint", "on_before_backward",
    "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad", "load_state_dict",
)  # fmt: skip
_numbers = itertools.count(1)
_made: dict[tuple[type, ...], type] = {}


def callback_classes() -> tuple[type, ...]:
    """The Callback classes of the packages that are loaded."""
    return tuple(sys.modules[name].Callback for name in _PACKAGES if hasattr(sys.modules.get(name), "Callback"))


def _ignore(self: Any, *args: Any, **kwargs: Any) -> None:
    """Nothing is to be done here."""


class LightningCallback:
    """Has every hook of a Lightning callback; subclasses define those that they need."""

    def __init__(self) -> None:
        number = next(_numbers)
        self._state_key = type(self).__name__ if number == 1 else f"{type(self).__name__}{number}"

    @property
    def state_key(self) -> str:
        """By which Lightning tells callbacks apart."""
        return self._state_key

    @property
    def __class__(self) -> type:
        """What `isinstance` asks for when the type itself is none of Lightning's."""
        return with_loaded_bases(type(self))

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise TypeError("can't be changed")

    @property
    def _legacy_state_key(self) -> type:
        """Asked for where a checkpoint with the state of other callbacks is loaded."""
        return type(self)

    def state_dict(self) -> dict[str, Any]:
        """Nothing of it belongs into a checkpoint."""
        return {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (_importable(type(self)), self.__dict__)


def with_loaded_bases(kind: type) -> type:
    """A class as a real subclass of the Callback classes that are loaded, for whoever asks `issubclass`."""
    bases = [each for each in callback_classes() if not issubclass(kind, each)]
    if not bases:
        return kind
    key = (kind, *bases)
    if key not in _made:
        _made[key] = type(kind.__name__, (kind, *bases), {"__module__": kind.__module__, "__doc__": kind.__doc__})
    return _made[key]


def _importable(kind: type) -> type:
    """The class that stands in a module, of one that was made for a loaded package."""
    return next(made[0] for made in [*_made, (kind,)] if _made.get(made, kind) is kind)


def _remade(kind: type, attributes: dict[str, Any]) -> Any:
    """A copy, in the process that Lightning has spawned."""
    made: Any = object.__new__(kind)
    made.__dict__.update(attributes)
    return made


for _hook in _HOOKS:
    setattr(LightningCallback, _hook, _ignore)
