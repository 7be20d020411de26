"""Finds the task of a configuration."""

from collections.abc import Mapping
from typing import Any

from laptime.config.schema import CLASSIFICATION, Config
from laptime.tasks.classification import Classification
from laptime.tasks.language_modeling import LanguageModeling
from laptime.tasks.task import Task

CLASSES: Mapping[str, type[Task]] = {task.name: task for task in (Classification, LanguageModeling)}


def make_task(config: Config) -> Task:
    """Return the task of a run."""
    if config.task.name == CLASSIFICATION:
        return Classification(config.training.label_smoothing, config.training.mixup_alpha)
    return CLASSES[config.task.name]()


def recorded_class(config: Mapping[str, Any]) -> type[Task]:
    """Return the class of the task of a recorded configuration. Records of older versions name no task."""
    return CLASSES[config.get("task", {}).get("name", CLASSIFICATION)]
