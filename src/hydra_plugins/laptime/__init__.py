"""Laptime's plugins for Hydra, which looks for them in this namespace alone."""
