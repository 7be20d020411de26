"""Laptime: how fast does this training go, on each device and at each world size, and why?

Importing this package loads no torch.
"""

from laptime.analysis.frames import Results, load
from laptime.cli import run
from laptime.errors import TrainingFailed, UserError
from laptime.version import __version__

__all__ = ["Results", "TrainingFailed", "UserError", "__version__", "load", "run"]
