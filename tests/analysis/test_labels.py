"""Labels of groups: common parts, shortened names, order."""

import pytest

from laptime.analysis.labels import common_label, label_sort_key, short_names, shorter_labels, without_ranks

pytestmark = pytest.mark.unit

LABELS = ["ws=1 lr=0.1 batch_size=64", "ws=2 lr=0.1 batch_size=64 ddp", "ws=2 lr=0.1 batch_size=8"]


def test_common_parts_of_labels_can_be_removed():
    assert common_label(LABELS) == "lr=0.1"
    assert common_label(LABELS[:2]) == "lr=0.1 batch_size=64"
    assert shorter_labels(LABELS) == ["ws=1 batch_size=64", "ws=2 batch_size=64 ddp", "ws=2 batch_size=8"]
    assert shorter_labels(LABELS[:1]) == LABELS[:1]


@pytest.mark.parametrize("name", ["ws", "strategy.world_size"])
def test_both_names_of_the_number_of_ranks_can_be_removed(name):
    assert without_ranks(f"{name}=16 lr=0.1 news=1") == "lr=0.1 news=1"


def test_labels_are_sorted_by_the_values_of_numbers():
    labels = ["ws=16", "ws=2", "ws=1 lr=1", "ws=auto"]
    assert sorted(labels, key=label_sort_key) == ["ws=1 lr=1", "ws=2", "ws=16", "ws=auto"]


def test_names_are_as_short_as_possible():
    names = short_names(["strategy.world_size", "x.size", "y.size", "optimizer.lr"])
    assert list(names.values()) == ["ws", "x.size", "y.size", "lr"]
