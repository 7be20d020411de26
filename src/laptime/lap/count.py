"""What a batch holds: samples and, of text, tokens. Nothing here waits for the device."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

# A number, or a scalar on the device that is read later; None: can't be told.
NumTokens = int | Tensor | None

_CHANNELS = (1, 3, 4)
_WHOLE_NUMBERS = (torch.int64, torch.int32)


def as_count(value: Any) -> int | Tensor:
    """What a user's function has counted: a scalar on the device as it is, whatever else as a whole number.

    Raises:
        TypeError, ValueError: it is no number.
    """
    return value.detach().reshape(()) if isinstance(value, Tensor) and value.numel() == 1 else int(value)


def num_samples(batch: Any) -> int | None:
    """The samples of a batch: the first dimension that all of its tensors share.

    A batch of graphs (`num_graphs`, as in PyTorch Geometric) and packed sequences say it themselves. A list of tensors
    with three dimensions, the first of 1, 3 or 4, may be one of images, and isn't counted.

    Args:
        batch: tensors in any nesting of lists, tuples, dictionaries and dataclasses. Those without dimensions say
            nothing.

    Returns:
        None: there is no tensor, or they differ in their first dimension, so it may be something else.
    """
    if isinstance(batch, list | tuple) and len(batch) == 2 and type(batch[0]) is Tensor and type(batch[1]) is Tensor:
        x, y = batch  # the most usual kind, without a generator
        if x.ndim and y.ndim and y.ndim != 3 and len(x) == len(y):
            return len(x)
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
        if isinstance(batch, list) and batch and all(isinstance(each, Tensor) and each.ndim == 3 for each in batch):
            # They may be images of different sizes, whose first dimension is their channels.
            yield from (-1 for each in batch[:1] if each.shape[0] in _CHANNELS)
    elif is_dataclass(batch):
        for each in fields(batch):
            yield from _sizes(getattr(batch, each.name))


def num_samples_of_loaders(batch: Any) -> int | None:
    """The samples of a batch that several DataLoaders have each given a part of: all of them together.

    Args:
        batch: a list, tuple or dictionary of batches; a part may be missing.
    """
    parts = [each for each in (batch.values() if isinstance(batch, Mapping) else batch) if each is not None]
    counts = [num_samples(part) for part in parts]
    return None if None in counts else sum(count for count in counts if count is not None)


def num_tokens(batch: Any) -> NumTokens:
    """The tokens of a batch of text; padding is none.

    They are what `attention_mask` leaves, else the places of `input_ids`, both (B, T) in a dictionary; else those of
    inputs and targets that are whole numbers of one shape (B, T), which `are_next_tokens` should be asked of once.

    Returns:
        None: it is not known to be text.
    """
    if isinstance(batch, Mapping):
        mask, ids = batch.get("attention_mask"), batch.get("input_ids")
        if isinstance(mask, Tensor):
            return mask.sum() if mask.ndim == 2 else None
        return ids.numel() if isinstance(ids, Tensor) and ids.ndim == 2 else None
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        return None
    inputs, targets = batch
    is_text = isinstance(inputs, Tensor) and isinstance(targets, Tensor) and inputs.dtype in _WHOLE_NUMBERS
    return inputs.numel() if is_text and inputs.ndim == 2 and inputs.shape == targets.shape else None


def are_next_tokens(batch: Any) -> bool:
    """Whether inputs and targets, both (B, T), are a text: each target is the next input. Waits for the device."""
    inputs, targets = batch
    return bool((inputs[:, 1:] == targets[:, :-1]).all()) if inputs.shape[1] > 1 else False
