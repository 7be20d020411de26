"""Samples and tokens of a batch, counted from its tensors."""

from collections import UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from laptime.lap.count import are_next_tokens, as_count, num_samples, num_samples_of_loaders, num_tokens

pytestmark = pytest.mark.unit


@dataclass
class Batch:
    x: Tensor
    y: Tensor
    name: str = "a batch"


@dataclass
class Graphs:
    """Like PyTorch Geometric's batches: the nodes of all graphs are in one dimension."""

    x: Tensor
    edge_index: Tensor
    num_graphs: int


Pair = namedtuple("Pair", "image label")
IMAGES = torch.zeros(8, 3, 4, 4)
LABELS = torch.zeros(8, dtype=torch.int64)
TEXT = torch.zeros(8, 16, dtype=torch.int64)
SEQUENCES = pack_sequence([torch.zeros(5, 2), torch.zeros(3, 2), torch.zeros(3, 2)])


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (IMAGES, 8),
        ((IMAGES, LABELS), 8),
        ([IMAGES, LABELS], 8),
        (Pair(IMAGES, LABELS), 8),
        ({"image": IMAGES, "label": LABELS}, 8),
        (UserDict(image=IMAGES), 8),
        ({"a": (IMAGES, LABELS), "b": [{"c": LABELS}], "text": ["one", "two"], "none": None}, 8),
        (Batch(IMAGES, LABELS), 8),
        ((IMAGES, torch.tensor(0.5)), 8),  # a scalar has no dimension
        ((torch.tensor(0.5), IMAGES), 8),
        ((IMAGES, LABELS, {"index": 3}), 8),
        (Graphs(torch.zeros(50, 4), torch.zeros(2, 90), num_graphs=6), 6),
        (SEQUENCES, 3),
        ((SEQUENCES, torch.zeros(3)), 3),
        ((IMAGES[:0], LABELS[:0]), 0),
    ],
)
def test_samples_are_the_dimension_that_all_tensors_share(batch, expected):
    assert num_samples(batch) == expected


@pytest.mark.parametrize(
    "batch",
    [
        None,
        (),
        {},
        "text",
        torch.tensor(1.0),
        (torch.tensor(1.0), torch.tensor(2.0)),
        (IMAGES, LABELS[:3]),
        (TEXT.T, LABELS),  # (T, B) with (B,)
        # As in torchvision's detection: images of any size, and any number of boxes.
        ([torch.zeros(3, 10, 12), torch.zeros(3, 9, 9)], [{"boxes": torch.zeros(2, 4)}, {"boxes": torch.zeros(5, 4)}]),
        Graphs(torch.zeros(50, 4), torch.zeros(2, 90), num_graphs=None),  # type: ignore[arg-type]
    ],
)
def test_unknown_numbers_of_samples_are_none(batch):
    assert num_samples(batch) is None


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ({"input_ids": TEXT}, 128),
        ({"input_ids": TEXT, "labels": LABELS}, 128),
        ({"input_ids": TEXT, "attention_mask": None}, 128),
        (UserDict(input_ids=TEXT), 128),
        ((TEXT, TEXT), 128),
        ([TEXT, TEXT], 128),
        ((TEXT.int(), TEXT), 128),
    ],
)
def test_tokens_of_text(batch, expected):
    tokens = num_tokens(batch)
    assert tokens == expected and isinstance(tokens, int)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
def test_padding_is_not_counted_as_tokens(dtype):
    mask = (torch.arange(16) < torch.arange(1, 9)[:, None]).to(dtype)
    tokens = num_tokens({"input_ids": TEXT, "attention_mask": mask})
    assert isinstance(tokens, Tensor) and int(tokens) == sum(range(1, 9))


@pytest.mark.parametrize(
    "batch",
    [
        None,
        (),
        {},
        IMAGES,
        (IMAGES, LABELS),
        {"image": IMAGES},
        LABELS,
        (TEXT, LABELS),  # a table of integers, and a class for each row
        (TEXT, TEXT, TEXT),
        (TEXT, TEXT[:, :3]),
        (TEXT.float(), TEXT.float()),
        {"input_ids": LABELS},
        {"input_ids": TEXT, "attention_mask": torch.ones(8, 1, 16, 16)},  # one row per query
    ],
)
def test_batches_that_are_not_text_have_no_tokens(batch):
    assert num_tokens(batch) is None


@pytest.mark.parametrize("value", [7, 7.0, torch.tensor(7), torch.tensor([7.0], requires_grad=True)])
def test_valid_counts(value):
    count = as_count(value)
    assert count == 7 and (isinstance(count, int) or (count.ndim == 0 and not count.requires_grad))


@pytest.mark.parametrize("value", [None, "seven", torch.ones(2), [7]])
def test_invalid_counts(value):
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        as_count(value)


def test_nothing_waits_for_the_device():
    """Tensors on `meta` have no values, so reading one fails."""
    ids, mask = TEXT.to("meta"), torch.ones(8, 16, device="meta")
    batch = {"input_ids": ids, "attention_mask": mask}
    assert num_samples(batch) == 8 and num_samples((ids, ids)) == 8 and num_tokens((ids, ids)) == 128
    tokens = num_tokens(batch)
    assert isinstance(tokens, Tensor) and tokens.is_meta and tokens.ndim == 0


def test_samples_of_several_dataloaders_are_added_up():
    assert num_samples_of_loaders({"a": (IMAGES, LABELS), "b": (IMAGES[:3], LABELS[:3]), "c": None}) == len(LABELS) + 3
    assert num_samples_of_loaders([(IMAGES, LABELS), (IMAGES, LABELS[:3])]) is None


def test_list_of_possible_images_is_not_counted():
    assert num_samples([torch.zeros(3, 10, 12), torch.zeros(3, 9, 9)]) is None
    assert num_samples(([torch.zeros(3, 10, 12)] * 3, LABELS[:3])) is None
    assert num_samples([torch.zeros(8, 10, 2), torch.zeros(8, 5, 2)]) == 8  # time series and their continuations


def test_next_tokens():
    text = torch.randint(0, 9, (8, 17))
    assert are_next_tokens((text[:, :-1], text[:, 1:])) and not are_next_tokens((text[:, :-1], text[:, :-1] + 1))
    assert not are_next_tokens((LABELS[:, None], LABELS[:, None]))
