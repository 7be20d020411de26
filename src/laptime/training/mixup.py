"""Mixup: training on weighted means of two images each, and of their losses."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Mixup:
    """Mixes each image of a batch with one other, all of a batch by the same share.

    The other is the one as far from the batch's end as the image is from its start: the order of samples is random
    already. So each pair is mixed both ways, and the larger share can be called the image's own.

    Args:
        alpha: shares are drawn from Beta(alpha, alpha): near 0 most images stay nearly as they are, at 1 all shares are
            as likely.

    Source: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization"; the pairing is that of timm's Mixup.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self._generator = np.random.default_rng(0)

    def start(self, seed: int) -> None:
        """The shares from now on follow from this seed, one for each step."""
        self._generator = np.random.default_rng(seed)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
        """Mix one batch.

        Args:
            images: (B, C, H, W), float32; left as they are.
            labels: (B,), int64.

        Returns:
            The mixed images, (B, C, H, W), the labels of the others, (B,), and the share of the image's own, in
            [0.5, 1].
        """
        share = float(self._generator.beta(self.alpha, self.alpha))
        share = max(share, 1 - share)
        return torch.lerp(images.flip(0), images, share), labels.flip(0), share


def mixed_loss(logits: Tensor, labels: Tensor, others: Tensor, share: float, label_smoothing: float) -> Tensor:
    """Mean cross entropy, a scalar, of which `share` is of the labels and the rest of the others' labels.

    Args:
        logits: (B, num_classes).
        labels, others: (B,), int64.
        share: in [0, 1]; at 1 the others are not looked at.
        label_smoothing: share of each label that is spread evenly over all classes, in [0, 1).

    Source: label smoothing is that of Szegedy et al. 2016, "Rethinking the Inception Architecture for Computer Vision".
    """
    loss = F.cross_entropy(logits, labels, label_smoothing=label_smoothing)
    if share < 1:
        loss = share * loss + (1 - share) * F.cross_entropy(logits, others, label_smoothing=label_smoothing)
    return loss
