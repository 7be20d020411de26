"""Generated images: of any shape, deterministic, learnable."""

import pytest
import torch

from laptime.data.mnist import MNIST

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("shape", [[1, 1, 1], [3, 5, 7], [2, 28, 28]])
@pytest.mark.parametrize("num_classes", [2, 100])
def test_images_have_the_given_shape_and_labels_the_given_classes(shape, num_classes, synthetic):
    data = synthetic(shape=shape, num_classes=num_classes, num_train=300, num_test=20)
    train, test, _ = data.load()
    assert (train.images.shape, test.images.shape) == ((300, *shape), (20, *shape))
    assert (train.images.dtype, train.labels.dtype) == (torch.uint8, torch.int64)
    assert set(train.labels.tolist()) <= set(range(num_classes))
    assert (data.image_shape, data.num_classes) == (tuple(shape), num_classes)


def test_every_class_occurs(synthetic):
    train, _, _ = synthetic(num_classes=7, num_train=500).load()
    assert train.labels.unique().tolist() == list(range(7))


def test_two_loads_give_the_same_images(synthetic):
    first, second = synthetic().load(), synthetic().load()
    for before, after in zip(first[:2], second[:2], strict=True):
        assert torch.equal(before.images, after.images)
        assert torch.equal(before.labels, after.labels)
    assert first[2] == second[2]


def test_the_images_and_the_global_seed_do_not_affect_each_other(synthetic):
    torch.manual_seed(1)
    first, expected = synthetic().load()[0].images, torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(synthetic().load()[0].images, first)


def test_training_and_test_images_differ(synthetic):
    train, test, _ = synthetic(num_train=11, num_test=11).load()
    assert not torch.equal(train.images, test.images)


@pytest.mark.parametrize("change", [{"num_classes": 5}, {"num_train": 24}, {"num_test": 12}, {"shape": [1, 5, 6]}])
def test_other_data_have_another_checksum(change, synthetic):
    assert synthetic(**change).load()[2] != synthetic().load()[2]


def test_nearest_class_mean_finds_the_class(synthetic):
    train, test, _ = synthetic(shape=[1, 8, 8], num_classes=10, num_train=1000, num_test=500).load()
    means = torch.stack([train.images[train.labels == label].float().mean(0).flatten() for label in range(10)])
    nearest = torch.cdist(test.images.float().flatten(1), means).argmin(1)
    # Guessing gives 0.1.
    assert (nearest == test.labels).float().mean() > 0.9


def test_mean_and_std_are_near_those_of_the_images(synthetic):
    pixels = synthetic(shape=[3, 16, 16], num_train=200).load()[0].images.float() / 255
    assert pixels.mean().item() == pytest.approx(0.5, abs=0.05)
    assert pixels.std().item() == pytest.approx(0.25, abs=0.05)


def test_it_is_marked_synthetic_and_real_data_is_not(synthetic):
    assert synthetic().synthetic is True
    assert MNIST.synthetic is False


@pytest.mark.parametrize(
    ("key", "refused", "accepted"),
    [
        ("shape", [1, 28], [1, 28, 28]),
        ("shape", [], [1, 1, 1]),
        ("shape", [1, 0, 28], [1, 1, 28]),
        ("num_classes", 1, 2),
        ("num_train", 0, 1),
        ("num_test", 0, 1),
        ("val_fraction", 1.0, 0.99),
        ("val_fraction", -0.01, 0.0),
        ("limit", 0, 1),
        ("limit", -1, None),
        ("num_workers", -1, 0),
        ("rotation_degrees", -0.5, 0.0),
        ("rotation_degrees", 180.5, 180.0),
    ],
)
def test_argument_out_of_range_is_refused_and_one_within_it_is_accepted(key, refused, accepted, synthetic):
    assert getattr(synthetic(**{key: accepted}), key) == accepted
    with pytest.raises(ValueError, match=rf"^{key}="):
        synthetic(**{key: refused})
