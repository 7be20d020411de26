"""Predictions of a network for a whole data set."""

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from laptime.lap.timed_loader import Batch


@dataclass(frozen=True)
class Predictions:
    """Predictions for N images.

    Attributes:
        logits: the network's output on the CPU, float32 (N, num_classes).
        labels: the true classes, (N,).
        loss: mean cross entropy.
    """

    logits: Tensor
    labels: Tensor
    loss: float

    @property
    def classes(self) -> Tensor:
        """The predicted classes, (N,)."""
        return self.logits.argmax(1)

    @property
    def accuracy(self) -> float:
        """The fraction of correct predictions."""
        return int((self.classes == self.labels).sum()) / len(self.labels)


def predict(
    network: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Predictions:
    """Run a network on all batches.

    Args:
        network: maps images (B, C, H, W) to logits (B, num_classes).
        batches: images and labels on the network's device.
        context: returns the context of each forward pass, e.g. autocast.
    """
    logits, labels, losses = [], [], []
    with torch.inference_mode():
        for images, batch_labels in batches:
            with context():
                batch_logits = network(images)
            batch_logits = batch_logits.float()
            losses.append(float(F.cross_entropy(batch_logits, batch_labels)) * len(batch_labels))
            logits.append(batch_logits.cpu())
            labels.append(batch_labels.cpu())
    all_labels = torch.cat(labels)
    return Predictions(torch.cat(logits), all_labels, math.fsum(losses) / len(all_labels))
