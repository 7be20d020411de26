"""Mixup: trains on weighted means of pairs of images. The loss is the weighted mean of the losses for both labels."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Mixup:
    """Mixes each image of a batch with one other image; lambda is the same for the whole batch.

    The image at index i is mixed with the image at index B - 1 - i, because the samples are shuffled already. Each pair
    is mixed in both directions, so the larger weight can always be the image's own.

    Args:
        alpha: the parameter of Beta(alpha, alpha), from which lambda is drawn. Near 0 most images hardly change; at 1
            lambda is uniform.

    Source: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization"; the pairing is that of timm's Mixup.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self._generator = np.random.default_rng(0)

    def start(self, seed: int) -> None:
        """Seed the generator that draws lambda, once per optimizer step."""
        self._generator = np.random.default_rng(seed)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
        """Mix one batch.

        Args:
            images: float32, (B, C, H, W); not modified.
            labels: int64, (B,).

        Returns:
            The mixed images (B, C, H, W), the labels (B,) of the images that were mixed in, and lambda in [0.5, 1], the
            weight of the image's own label.
        """
        lam = float(self._generator.beta(self.alpha, self.alpha))
        lam = max(lam, 1 - lam)
        return torch.lerp(images.flip(0), images, lam), labels.flip(0), lam


def mixed_loss(logits: Tensor, labels: Tensor, mixed_labels: Tensor, lam: float, label_smoothing: float) -> Tensor:
    """Return the mean cross entropy: `lam` times that of `labels` plus `1 - lam` times that of `mixed_labels`.

    Args:
        logits: the network's output, (B, num_classes).
        labels, mixed_labels: int64, (B,).
        lam: the weight of `labels`, in [0, 1]; at 1 the mixed labels are not used.
        label_smoothing: the fraction of each label that is spread evenly over all classes, in [0, 1).

    Source: label smoothing is that of Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision".
    """
    loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    if lam < 1:
        loss = lam * loss + (1 - lam) * F.cross_entropy(logits, mixed_labels, label_smoothing=label_smoothing)
    return loss
