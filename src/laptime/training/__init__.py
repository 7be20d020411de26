"""The training: the LightningModule, its optimizer steps, checkpoints, and checks before the first step."""

from laptime.training.classifier import Classifier

__all__ = ["Classifier"]
