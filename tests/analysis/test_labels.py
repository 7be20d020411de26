"""What labels of groups have in common, and what tells them apart."""

import pytest

from laptime.analysis.labels import common_label, label_sort_key, short_names, shorter_labels, without_ranks

pytestmark = pytest.mark.unit

LABELS = ["ws=1 lr=0.1 batch_size=64", "ws=2 lr=0.1 batch_size=64 ddp", "ws=2 lr=0.1 batch_size=8"]


def test_what_all_labels_say_is_common_and_can_be_left_out():
    assert common_label(LABELS) == "lr=0.1"
    assert common_label(LABELS[:2]) == "lr=0.1 batch_size=64"
    assert shorter_labels(LABELS) == ["ws=1 batch_size=64", "ws=2 batch_size=64 ddp", "ws=2 batch_size=8"]
    assert shorter_labels(LABELS[:1]) == LABELS[:1]


@pytest.mark.parametrize("name", ["ws", "strategy.world_size"])
def test_the_number_of_ranks_can_be_left_out_by_either_of_its_names(name):
    assert without_ranks(f"{name}=16 lr=0.1 news=1") == "lr=0.1 news=1"


def test_labels_are_sorted_by_the_values_of_numbers():
    labels = ["ws=16", "ws=2", "ws=1 lr=1", "ws=auto"]
    assert sorted(labels, key=label_sort_key) == ["ws=1 lr=1", "ws=2", "ws=16", "ws=auto"]


def test_names_are_as_short_as_they_can_be():
    found = short_names(["strategy.world_size", "x.size", "y.size", "optimizer.lr"])
    assert list(found.values()) == ["ws", "x.size", "y.size", "lr"]
