"""Laptime: how fast does this training go, on each device and at each world size, and why?

Importing this package is cheap: the dependencies of a name are imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from laptime.errors import TrainingFailed, UserError
from laptime.version import __version__

if TYPE_CHECKING:
    from laptime.analysis.frames import Results, load
    from laptime.cli.train import run
    from laptime.hooks.lightning import LapTimer
    from laptime.hooks.loop import Laps, laps
    from laptime.hooks.transformers import LapTimerCallback

__all__ = [
    "LapTimer", "LapTimerCallback", "Laps", "Results", "TrainingFailed", "UserError", "__version__", "laps", "load",
    "run",
]  # fmt: skip

_MODULES = {
    "LapTimer": "laptime.hooks.lightning",
    "LapTimerCallback": "laptime.hooks.transformers",
    "Laps": "laptime.hooks.loop",
    "Results": "laptime.analysis.frames",
    "laps": "laptime.hooks.loop",
    "load": "laptime.analysis.frames",
    "run": "laptime.cli.train",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'laptime' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    if name == "LapTimer":  # must be a subclass of the Callback of the loaded Lightning
        from laptime.hooks.lightning_callback import with_loaded_bases

        return with_loaded_bases(value)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
