"""The order of samples: a new permutation every epoch, without overlap between ranks."""

import torch
from torch import Tensor
from torch.utils.data import Sampler


class EpochOrder(Sampler[int]):
    """The order in which one rank sees its samples in each epoch.

    The permutation depends only on (seed, epoch), so a resumed run continues exactly as an uninterrupted one. Each rank
    takes every world_size-th sample. If num_samples is not divisible by world_size, an epoch drops the remaining
    samples, so that all ranks take the same number of steps.

    Args:
        num_samples: size of the training set.
        seed: the seed of the run.
        rank, world_size: the rank of this process, and the number of ranks.
    """

    def __init__(self, num_samples: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the current epoch. Lightning calls this before every epoch, also in a resumed run."""
        self.epoch = epoch

    def permutation(self) -> Tensor:
        """The indices of this rank's samples in this epoch: int64, (num_samples // world_size,)."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        order = torch.randperm(self.num_samples, generator=generator)
        return order[: len(self) * self.world_size][self.rank :: self.world_size]

    def generator(self, device: torch.device) -> torch.Generator:
        """Return the generator that augments this rank's samples in this epoch.

        It is separate from torch's global generator, so that dropout draws the same numbers with every pipeline.
        """
        return torch.Generator(device).manual_seed(epoch_seed(self.seed, self.epoch, self.rank) ^ 1)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self.permutation().tolist())

    def __len__(self) -> int:
        return self.num_samples // self.world_size


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """Return a different seed for every (seed, epoch, rank). Neighboring values give unrelated random numbers.

    Source: the mixing step of SplitMix64 (Steele, Lea and Flood 2014).
    """
    mask = 2**64 - 1
    x = (seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB + 1) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return (x ^ (x >> 31)) & (2**63 - 1)
