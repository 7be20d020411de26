"""Loggers of experiment trackers, each an extra: one per file."""
