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


def mean_loss(
    network: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    loss: Callable[[Tensor, Tensor], Tensor],
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> float:
    """Return the mean loss over all samples, without keeping the logits.

    Args:
        network: maps inputs to logits.
        batches: inputs and targets on the network's device.
        loss: returns the mean loss of a batch from logits and targets.
        context: returns the context of each forward pass, e.g. autocast.
    """
    losses, num_samples = [], 0
    with torch.inference_mode():
        for inputs, targets in batches:
            with context():
                logits = network(inputs)
            losses.append(float(loss(logits, targets)) * len(targets))
            num_samples += len(targets)
    return math.fsum(losses) / num_samples


def predict(
    network: Callable[[Tensor], Tensor],
    batches: Iterable[Batch],
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Predictions:
    """Run a network on all batches of images.

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
