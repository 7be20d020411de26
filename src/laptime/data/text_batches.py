"""Batches of text: windows of a token sequence, gathered on the device. A network learns the next token of each."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from laptime.data.memory import GatheringPipeline
from laptime.data.order import EpochOrder, epoch_seed
from laptime.lap.timed_loader import Batch

_INT64_BYTES = 8


@dataclass(frozen=True)
class Windows:
    """Disjoint windows of `length` tokens.

    Attributes:
        tokens: the token sequence, whole numbers, (number of tokens,).
        starts: the index of each window's first token, int64, (N,).
        length: tokens per window: the context and the token after it.
    """

    tokens: Tensor
    starts: Tensor
    length: int

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, index: slice) -> "Windows":
        """Return a subset of the windows."""
        return Windows(self.tokens, self.starts[index], self.length)

    def to(self, device: torch.device) -> "Windows":
        return Windows(self.tokens.to(device), self.starts.to(device), self.length)

    def at(self, index: Tensor | slice, offset: int = 0) -> Batch:
        """Return a batch: inputs and targets, the token after each input; both int64 (B, length - 1).

        Args:
            offset: number of tokens by which the windows are moved towards the end.
        """
        positions = torch.arange(offset, offset + self.length, device=self.starts.device)
        windows = self.tokens[self.starts[index].unsqueeze(1) + positions].to(torch.int64)
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def windows_of(tokens: Tensor, context_length: int, moves: bool) -> Windows:
    """Return the windows of a token sequence, without a rest at its end that is too short.

    Args:
        moves: whether all windows must fit in at every offset from 0 to context_length.
    """
    length = context_length + 1
    num_tokens = len(tokens) - (context_length if moves else 0)
    return Windows(tokens, length * torch.arange(max(0, num_tokens // length)), length)


class TextPipeline(GatheringPipeline):
    """Training batches of text. All windows of a pass over the text are moved by an offset, which (seed, number of the
    pass) determines.

    Args:
        data: the windows, on the training device.
        order, batch_size, steps_per_execution: see `GatheringPipeline`.
    """

    def __init__(self, data: Windows, order: EpochOrder, batch_size: int, steps_per_execution: int) -> None:
        super().__init__(order, batch_size, steps_per_execution, 2 * _INT64_BYTES * (data.length - 1))
        self.data = data

    def _gathered(self, size: int) -> Iterator[Batch]:
        for number, part in enumerate(self.order.parts(), self.order.first_pass):
            offset = epoch_seed(self.order.seed, number) % self.data.length
            for index in part.to(self.data.starts.device).split(size):
                yield self.data.at(index, offset)


class TextEvaluation:
    """Batches of all windows in order.

    Args:
        data: the windows, on the device.
        batch_size: windows per batch.
    """

    def __init__(self, data: Windows, batch_size: int) -> None:
        self.data = data
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.data), self.batch_size):
            yield self.data.at(slice(start, start + self.batch_size))
