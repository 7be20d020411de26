"""Tasks: what a network learns from which kind of data, and how the result is scored."""

from laptime.tasks.task import Task

__all__ = ["Task"]
