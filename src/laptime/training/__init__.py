"""Optimizer steps: the module that trains, its checkpoints, what is refused before the first step."""

from laptime.training.classifier import Classifier

__all__ = ["Classifier"]
