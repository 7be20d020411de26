"""The order of samples: a new permutation in every pass over the training set, without overlap between ranks."""

from collections.abc import Iterator
from itertools import chain

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

    Attributes:
        epoch: the current epoch, from 0.
        lap_word: the word for what an epoch is.
    """

    lap_word = "epoch"

    def __init__(self, num_samples: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.num_samples = num_samples
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the current epoch. Lightning calls this before every epoch, also in a resumed run."""
        self.epoch = epoch

    @property
    def first_pass(self) -> int:
        """The number of the pass over the training set to which the first of `parts` belongs."""
        return self.epoch

    def permutation(self) -> Tensor:
        """The indices of this rank's samples in this epoch: int64, (num_samples // world_size,)."""
        return self._pass(self.epoch, self.num_samples // self.world_size)

    def _pass(self, number: int, size: int) -> Tensor:
        """The indices of this rank's first samples in a pass over the training set: int64, (size,)."""
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, number))
        order = torch.randperm(self.num_samples, generator=generator)
        return order[: size * self.world_size][self.rank :: self.world_size]

    def parts(self) -> Iterator[Tensor]:
        """Yield the indices of `permutation` in parts, one for each pass over the training set, to save memory."""
        yield self.permutation()

    def generator(self, device: torch.device) -> torch.Generator:
        """Return the generator that augments this rank's samples in this epoch.

        It is separate from torch's global generator, so that dropout draws the same numbers with every pipeline.
        """
        return torch.Generator(device).manual_seed(epoch_seed(self.seed, self.epoch, self.rank) ^ 1)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return chain.from_iterable(part.tolist() for part in self.parts())

    def __len__(self) -> int:
        return self.num_samples // self.world_size


class LapOrder(EpochOrder):
    """The order in which one rank sees its samples in laps of a fixed number of optimizer steps.

    The steps of all laps form one endless sequence of passes over the training set. Lap k has the steps k * lap_steps
    to (k + 1) * lap_steps - 1, so a pass may end in the middle of a lap. A pass drops its last samples if they are
    fewer than a batch, so every step has a full batch. A lap's samples depend only on the seed and the lap, so a
    resumed run continues exactly as an uninterrupted one. `epoch` is the number of the lap.

    Args:
        lap_steps: optimizer steps of a lap.
        batch_size: samples of this rank in an optimizer step.
        num_samples, seed, rank, world_size: the arguments of EpochOrder; batch_size * world_size <= num_samples.
    """

    lap_word = "lap"

    def __init__(
        self, lap_steps: int, batch_size: int, num_samples: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(num_samples, seed, rank, world_size)
        self.lap_steps = lap_steps
        self.batch_size = batch_size
        self._last_pass: tuple[int, Tensor] | None = None

    @property
    def first_pass(self) -> int:
        return self.epoch * self.lap_steps // self._pass_steps

    @property
    def _pass_steps(self) -> int:
        return self.num_samples // (self.batch_size * self.world_size)

    def permutation(self) -> Tensor:
        """The indices of this rank's samples in this lap: int64, (lap_steps * batch_size,)."""
        return torch.cat(list(self.parts()))

    def parts(self) -> Iterator[Tensor]:
        pass_steps = self._pass_steps
        step, end = self.epoch * self.lap_steps, (self.epoch + 1) * self.lap_steps
        while step < end:
            number, first = divmod(step, pass_steps)
            num_steps = min(pass_steps - first, end - step)
            indices = self._pass(number, pass_steps * self.batch_size)
            yield indices[first * self.batch_size : (first + num_steps) * self.batch_size]
            step += num_steps

    def _pass(self, number: int, size: int) -> Tensor:
        # Kept, because drawing a large permutation for each of many short laps would take longer than some steps.
        if self._last_pass is None or self._last_pass[0] != number:
            self._last_pass = number, super()._pass(number, size)
        return self._last_pass[1]

    def __len__(self) -> int:
        return self.lap_steps * self.batch_size


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """Return a different seed for every (seed, epoch, rank). Neighboring values give unrelated random numbers.

    Source: the mixing step of SplitMix64 (Steele, Lea and Flood 2014).
    """
    mask = 2**64 - 1
    x = (seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB + 1) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return (x ^ (x >> 31)) & (2**63 - 1)
