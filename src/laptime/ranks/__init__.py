"""Ranks: what a rank is, how torchrun's ranks join, and how ranks communicate and fail."""
