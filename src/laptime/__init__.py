"""Laptime: how fast does this training go, on each device and at each world size, and why?

Importing this package loads no torch.
"""

from importlib.metadata import version

from laptime.cli import run

__version__ = version("laptime")

__all__ = ["__version__", "run"]
