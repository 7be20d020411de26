"""Ranks: what one is, how torchrun's ranks join, how ranks communicate and fail."""
