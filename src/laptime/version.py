"""Laptime's version. Defined only here, so that it is also known when the package is not installed."""

__version__ = "0.1.0"
