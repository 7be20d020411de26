"""Loggers of experiment trackers, one per file. Each needs its optional package."""
