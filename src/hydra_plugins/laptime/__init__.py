"""Laptime's plugins for Hydra, which finds plugins only in this namespace."""
