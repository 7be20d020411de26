"""A callback base class that works with both Lightning packages: `lightning` and `pytorch_lightning`.

Each package has its own Callback class and checks for it. A subclass of one would not work with the Trainer of the
other, and importing both takes seconds. So this class defines all hooks itself, and `isinstance` reports it as a
Callback of every package that is loaded.
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
_subclasses: dict[tuple[type, ...], type] = {}


def callback_classes() -> tuple[type, ...]:
    """Return the Callback classes of the loaded packages."""
    return tuple(sys.modules[name].Callback for name in _PACKAGES if hasattr(sys.modules.get(name), "Callback"))


def _ignore(self: Any, *args: Any, **kwargs: Any) -> None:
    """Do nothing in a hook that no subclass overrides."""


class LightningCallback:
    """Defines every hook of a Lightning callback as a no-op; subclasses override those that they need."""

    def __init__(self) -> None:
        number = next(_numbers)
        self._state_key = type(self).__name__ if number == 1 else f"{type(self).__name__}{number}"

    @property
    def state_key(self) -> str:
        """The key that Lightning uses for this callback, unique for each instance."""
        return self._state_key

    @property
    def __class__(self) -> type:
        """`isinstance` falls back to this, because the type itself is no subclass of Lightning's Callback."""
        return with_loaded_bases(type(self))

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise TypeError("__class__ can't be changed")

    @property
    def _legacy_state_key(self) -> type:
        """The key of this callback in checkpoints of Lightning before 1.5. Lightning reads it whenever it loads one."""
        return type(self)

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state, because checkpoints need nothing from the timer."""
        return {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (_importable(type(self)), self.__dict__)


def with_loaded_bases(cls: type) -> type:
    """Return a subclass of `cls` and of the loaded Callback classes, so that `issubclass` works too."""
    bases = [base for base in callback_classes() if not issubclass(cls, base)]
    if not bases:
        return cls
    key = (cls, *bases)
    if key not in _subclasses:
        _subclasses[key] = type(cls.__name__, (cls, *bases), {"__module__": cls.__module__, "__doc__": cls.__doc__})
    return _subclasses[key]


def _importable(cls: type) -> type:
    """Return the class that pickle can import: the first base of a class that `with_loaded_bases` made, or `cls`."""
    return next(key[0] for key in [*_subclasses, (cls,)] if _subclasses.get(key, cls) is cls)


def _rebuild(cls: type, attributes: dict[str, Any]) -> Any:
    """Unpickle a callback, e.g. in a process that Lightning has spawned."""
    callback: Any = object.__new__(cls)
    callback.__dict__.update(attributes)
    return callback


for _hook in _HOOKS:
    setattr(LightningCallback, _hook, _ignore)
