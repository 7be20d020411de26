"""The training: the LightningModule, its optimizer steps, checkpoints, and checks before the first step."""

from laptime.training.network_module import NetworkModule

__all__ = ["NetworkModule"]
