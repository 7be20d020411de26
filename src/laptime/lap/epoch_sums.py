"""Losses and correct predictions of an epoch: summed on the device, averaged over all ranks at its end."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from laptime.ranks.rank import Rank


class Sums:
    """Losses and correct predictions (hits) of an epoch so far, on the device. Reading them waits for the device."""

    def __init__(self) -> None:
        self.num_samples = 0
        self.num_batches = 0
        self._losses: list[Tensor] = []
        self._sizes: list[int] = []
        self._hits: Tensor | None = None

    def add(self, losses: Tensor, hits: Tensor, sizes: list[int]) -> None:
        """Add some batches.

        Args:
            losses: mean loss of each batch, (K,).
            hits: number of correct predictions in all of them, a scalar.
            sizes: number of samples in each batch, K numbers.
        """
        self._losses.append(losses.detach())
        self._sizes += sizes
        self._hits = hits if self._hits is None else self._hits + hits
        self.num_samples += sum(sizes)
        self.num_batches += len(sizes)

    def loss(self) -> float:
        """Mean loss per sample on this rank; NaN before the first batch."""
        return self._loss_sum() / self.num_samples if self.num_samples else math.nan

    def accuracy(self) -> float:
        """Accuracy on this rank, from 0 to 1; NaN before the first batch."""
        return math.nan if self._hits is None else int(self._hits) / self.num_samples

    def means(self, rank: Rank) -> "Means":
        """Return the means over all ranks, in which every sample has the same weight."""
        hits = 0 if self._hits is None else int(self._hits)
        loss_sum, hit_sum, num_samples = rank.all_reduce_sum([self._loss_sum(), hits, self.num_samples])
        if not num_samples:
            return Means(math.nan, math.nan, 0)
        return Means(loss_sum / num_samples, hit_sum / num_samples, int(num_samples))

    def _loss_sum(self) -> float:
        if not self._losses:
            return 0.0
        losses = torch.cat(self._losses).cpu().double()
        return float((losses * torch.tensor(self._sizes, dtype=torch.float64)).sum())


class Means(NamedTuple):
    """Means of an epoch over all ranks.

    Attributes:
        loss: mean loss per sample.
        accuracy: fraction of correct predictions, from 0 to 1.
        num_samples: number of samples behind these means.
    """

    loss: float
    accuracy: float
    num_samples: int
