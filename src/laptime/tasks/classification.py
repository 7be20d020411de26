"""Classification of images."""

import torch.nn.functional as F
from torch import Tensor

from laptime.config.schema import CLASSIFICATION
from laptime.data.image_data import ImageData
from laptime.data.image_datamodule import ImageDataModule
from laptime.lap.epoch_sums import Means
from laptime.tasks.mixup import Mixup, mixed_loss
from laptime.tasks.task import Task


class Classification(Task):
    """A network maps images (B, C, H, W), float32, to logits (B, num_classes). The loss is cross entropy.

    Args:
        label_smoothing: the fraction of each training label that is spread evenly over all classes.
        mixup_alpha: the parameter of Beta(alpha, alpha), from which mixup draws lambda; 0: no mixup.
    """

    name = CLASSIFICATION
    data_class = ImageData
    data_module = ImageDataModule
    network_arguments = frozenset({"input_shape", "num_classes"})
    content = "images"
    has_accuracy = True

    def __init__(self, label_smoothing: float = 0.0, mixup_alpha: float = 0.0) -> None:
        self.label_smoothing = label_smoothing
        self._mixup = Mixup(mixup_alpha) if mixup_alpha else None

    def start_epoch(self, seed: int) -> None:
        if self._mixup is not None:
            self._mixup.start(seed)

    def mix(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, float]:
        return (inputs, targets, 1.0) if self._mixup is None else self._mixup(inputs, targets)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), targets)

    def training_loss(self, logits: Tensor, targets: Tensor, mixed_targets: Tensor, lam: float) -> Tensor:
        return mixed_loss(logits, targets, mixed_targets, lam, self.label_smoothing)

    def score_of(self, means: Means) -> float | None:
        return means.accuracy

    def num_hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits.argmax(1) == targets).sum()
