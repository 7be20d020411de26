"""Which samples make up which optimizer step: a new permutation every epoch, without overlap between ranks."""

import torch
from torch import Tensor
from torch.utils.data import Sampler


class EpochOrder(Sampler[int]):
    """The order in which one rank sees its share of the training set in each epoch.

    The permutation follows from (seed, epoch) alone, so a resumed run goes on exactly as the undisturbed one would
    have. Each rank takes every world_size-th sample of it; what is left over when the samples don't divide evenly is
    dropped from this epoch, so that all ranks take the same number of steps.

    Args:
        num_samples: size of the training set.
        seed: of the run.
        rank, world_size: this process and how many there are.
    """

    def __init__(self, num_samples: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before every epoch, also after a resume."""
        self.epoch = epoch

    def permutation(self) -> Tensor:
        """This rank's indices in this epoch: int64, (num_samples // world_size,)."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        order = torch.randperm(self.num_samples, generator=generator)
        return order[: len(self) * self.world_size][self.rank :: self.world_size]

    def generator(self, device: torch.device) -> torch.Generator:
        """For whatever else is drawn at random for this rank's samples in this epoch; apart from torch's own generator,
        so that dropout draws the same numbers with every pipeline."""
        return torch.Generator(device).manual_seed(epoch_seed(self.seed, self.epoch, self.rank) ^ 1)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self.permutation().tolist())

    def __len__(self) -> int:
        return self.num_samples // self.world_size


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """A seed of its own for every (seed, epoch, rank): neighbours give unrelated random numbers.

    Source: the mixing step of SplitMix64 (Steele, Lea and Flood 2014).
    """
    mask = 2**64 - 1
    x = (seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB + 1) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return (x ^ (x >> 31)) & (2**63 - 1)
