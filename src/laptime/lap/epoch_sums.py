"""Losses and correct predictions of an epoch: summed on the device, averaged over all ranks at its end."""

import math
from collections.abc import Sequence
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
        self._num_without_hits = 0

    def add(self, losses: Tensor, hits: Tensor | None, sizes: list[int]) -> None:
        """Add some batches.

        Args:
            losses: mean loss of each batch, (K,).
            hits: number of correct predictions in all of them, a scalar; None: the task counts none.
            sizes: number of samples in each batch, K numbers.
        """
        self._losses.append(losses.detach())
        self._sizes += sizes
        if hits is None:
            self._num_without_hits += sum(sizes)
        else:
            self._hits = hits if self._hits is None else self._hits + hits
        self.num_samples += sum(sizes)
        self.num_batches += len(sizes)

    def local_means(self) -> "Means":
        """Return the means on this rank, in which every sample has the same weight."""
        return _means(self._totals())

    def means(self, rank: Rank) -> "Means":
        """Return the means over all ranks, in which every sample has the same weight."""
        return _means(rank.all_reduce_sum(self._totals()))

    def _totals(self) -> list[float]:
        hits = 0 if self._hits is None else int(self._hits)
        return [self._loss_sum(), hits, self.num_samples, self._num_without_hits]

    def _loss_sum(self) -> float:
        if not self._losses:
            return 0.0
        losses = torch.cat(self._losses).cpu().double()
        return float((losses * torch.tensor(self._sizes, dtype=torch.float64)).sum())


class Means(NamedTuple):
    """Means of an epoch over all ranks.

    Attributes:
        loss: mean loss per sample.
        accuracy: fraction of correct predictions, from 0 to 1; None: the task counts none.
        num_samples: number of samples behind these means.
    """

    loss: float
    accuracy: float | None
    num_samples: int


def _means(totals: Sequence[float]) -> Means:
    loss_sum, hits, num_samples, num_without_hits = totals
    if not num_samples:
        return Means(math.nan, math.nan, 0)
    return Means(loss_sum / num_samples, None if num_without_hits else hits / num_samples, int(num_samples))
