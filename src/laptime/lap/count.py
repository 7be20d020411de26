"""Counts the samples of a batch, and the tokens if it is text. Only `are_next_tokens` waits for the device."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

# A number, or a scalar tensor that is read later; None: unknown.
NumTokens = int | Tensor | None

_CHANNELS = (1, 3, 4)
_WHOLE_NUMBERS = (torch.int64, torch.int32)


def as_count(value: Any) -> int | Tensor:
    """Convert the return value of a user's counting function to int. A scalar tensor is kept.

    Raises:
        TypeError, ValueError: it is not a number.
    """
    return value.detach().reshape(()) if isinstance(value, Tensor) and value.numel() == 1 else int(value)


def num_samples(batch: Any) -> int | None:
    """Return the number of samples: the size of the first dimension, if it is the same in all tensors of the batch.

    Batches of graphs (`num_graphs`, as in PyTorch Geometric) and packed sequences know their number. A list of tensors
    with three dimensions, the first of size 1, 3 or 4, isn't counted: it may be a list of images.

    Args:
        batch: tensors in any nesting of lists, tuples, dictionaries and dataclasses. Scalar tensors are ignored.

    Returns:
        The number; None: there is no tensor, or the tensors differ in their first dimension.
    """
    if isinstance(batch, list | tuple) and len(batch) == 2 and type(batch[0]) is Tensor and type(batch[1]) is Tensor:
        x, y = batch  # fast path for the most common kind of batch
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
        if isinstance(batch, list) and batch and all(isinstance(item, Tensor) and item.ndim == 3 for item in batch):
            # They may be images of different sizes, whose first dimension is the channels. -1 makes the sizes differ.
            yield from (-1 for item in batch[:1] if item.shape[0] in _CHANNELS)
    elif is_dataclass(batch):
        for field in fields(batch):
            yield from _sizes(getattr(batch, field.name))


def num_samples_of_loaders(batch: Any) -> int | None:
    """Return the number of samples in a combined batch of several DataLoaders, added up; None: unknown.

    Args:
        batch: a list, tuple or dictionary of batches; the batch of an exhausted loader is None.
    """
    batches = [item for item in (batch.values() if isinstance(batch, Mapping) else batch) if item is not None]
    counts = [num_samples(item) for item in batches]
    return None if None in counts else sum(count for count in counts if count is not None)


def num_tokens(batch: Any) -> NumTokens:
    """Return the number of tokens in a batch of text, without padding.

    For a dictionary, it is the sum of `attention_mask` (B, T), or else the number of elements of `input_ids` (B, T).
    For a pair of integer inputs and targets of the same shape (B, T), it is the number of inputs. `are_next_tokens`
    checks whether such a pair is text.

    Returns:
        The number; None: the batch was not recognized as text.
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
    """Whether inputs and targets, both (B, T), are text: each target is the next input. Waits for the device."""
    inputs, targets = batch
    return bool((inputs[:, 1:] == targets[:, :-1]).all()) if inputs.shape[1] > 1 else False
