"""What a batch holds: samples and, of text, tokens. Nothing here waits for the device."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

# A number, or a scalar on the device that is read later; None: can't be told.
NumTokens = int | Tensor | None

_WHOLE_NUMBERS = (torch.int64, torch.int32, torch.int16, torch.uint8)


def as_count(value: Any) -> int | Tensor:
    """What a user's function has counted: a scalar on the device as it is, whatever else as a whole number.

    Raises:
        TypeError, ValueError: it is no number.
    """
    return value.detach().reshape(()) if isinstance(value, Tensor) and value.numel() == 1 else int(value)


def num_samples(batch: Any) -> int | None:
    """The samples of a batch: the first dimension that all of its tensors share.

    A batch of graphs (`num_graphs`, as in PyTorch Geometric) and packed sequences say it themselves.

    Args:
        batch: tensors in any nesting of lists, tuples, dictionaries and dataclasses. Those without dimensions say
            nothing.

    Returns:
        None: there is no tensor, or they differ in their first dimension, so it may be something else.
    """
    if isinstance(batch, list | tuple) and len(batch) == 2 and type(batch[0]) is Tensor and type(batch[1]) is Tensor:
        x, y = batch  # the most usual kind, without a generator
        return len(x) if x.ndim and y.ndim and len(x) == len(y) else _shared_size(batch)
    return _shared_size(batch)


def _shared_size(batch: Any) -> int | None:
    num_graphs = getattr(batch, "num_graphs", None)
    if isinstance(num_graphs, int):
        return num_graphs
    sizes = set(_sizes(batch))
    return sizes.pop() if len(sizes) == 1 else None


def _sizes(batch: Any) -> Iterator[int]:
    if isinstance(batch, PackedSequence):
        yield int(batch.batch_sizes[0])
    elif isinstance(batch, Tensor):
        if batch.ndim:
            yield batch.shape[0]
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _sizes(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from _sizes(value)
    elif is_dataclass(batch):
        for each in fields(batch):
            yield from _sizes(getattr(batch, each.name))


def num_tokens(batch: Any) -> NumTokens:
    """The tokens of a batch of text; padding is none.

    They are what `attention_mask` leaves, else the places of `input_ids`, both (B, T) in a dictionary; else those of a
    batch that is nothing but whole numbers of one shape (B, T): inputs alone, or inputs and targets.

    Returns:
        None: it is not known to be text.
    """
    if isinstance(batch, list | tuple):
        parts = batch
    elif isinstance(batch, Mapping):
        mask, ids = batch.get("attention_mask"), batch.get("input_ids")
        if isinstance(mask, Tensor):
            return mask.sum() if mask.ndim == 2 else None
        return ids.numel() if isinstance(ids, Tensor) and ids.ndim == 2 else None
    else:
        parts = (batch,)
    first = parts[0] if parts else None
    if (
        not isinstance(first, Tensor)
        or first.ndim != 2
        or first.is_floating_point()
        or first.dtype not in _WHOLE_NUMBERS
    ):
        return None
    is_text = len(parts) <= 2 and all(isinstance(each, Tensor) and each.shape == first.shape for each in parts)
    return first.numel() if is_text else None
