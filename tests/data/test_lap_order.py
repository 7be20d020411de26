"""Laps of a number of steps: slices of one endless sequence of passes over the training set."""

from itertools import chain, islice

import pytest
import torch

from laptime.data.order import EpochOrder, LapOrder
from laptime.ranks.rank import Rank

pytestmark = pytest.mark.unit

NUM_SAMPLES, BATCH = 23, 5  # four steps per pass; three samples are dropped


def laps(num_laps, lap_steps, num_samples=NUM_SAMPLES, batch_size=BATCH, **rank):
    """The samples of some laps: a list of steps for each lap."""
    order = LapOrder(lap_steps, batch_size, num_samples, seed=3, **rank)
    for lap in range(num_laps):
        order.set_epoch(lap)
        yield [step.tolist() for step in order.permutation().split(batch_size)]


def test_laps_continue_each_other_over_passes_without_their_last_samples():
    passes = EpochOrder(NUM_SAMPLES, seed=3)
    expected = []
    for number in range(6):
        passes.set_epoch(number)
        expected += [step.tolist() for step in passes.permutation()[:20].split(BATCH)]
    assert list(chain.from_iterable(laps(4, lap_steps=6))) == expected  # passes end in the middle of laps
    assert list(chain.from_iterable(laps(12, lap_steps=2))) == expected
    assert list(chain.from_iterable(laps(2, lap_steps=12))) == expected  # a lap of several passes


def test_every_step_has_a_full_batch():
    for lap in laps(7, lap_steps=3):
        assert [len(set(step)) for step in lap] == [BATCH] * 3


def test_laps_of_whole_passes_equal_epochs_if_batches_divide_them():
    order = EpochOrder(20, seed=3)
    for number, lap in enumerate(laps(3, lap_steps=4, num_samples=20)):
        order.set_epoch(number)
        assert list(chain.from_iterable(lap)) == order.permutation().tolist()


def test_a_later_lap_does_not_depend_on_the_laps_before():
    order = LapOrder(6, BATCH, NUM_SAMPLES, seed=3)
    order.set_epoch(2)
    assert [step.tolist() for step in order.permutation().split(BATCH)] == list(laps(3, lap_steps=6))[2]
    assert len(order) == len(order.permutation()) == 30


def test_two_ranks_take_the_samples_of_one_with_the_global_batch():
    ranks = [laps(5, lap_steps=3, batch_size=BATCH, rank=rank, world_size=2) for rank in (0, 1)]
    for whole, *parts in zip(laps(5, lap_steps=3, batch_size=2 * BATCH), *ranks, strict=True):
        assert [sorted(step) for step in whole] == [sorted(a + b) for a, b in zip(*parts, strict=True)]


def test_the_indices_of_an_endless_lap_come_in_parts():
    order = LapOrder(10**9, BATCH, NUM_SAMPLES, seed=3)
    parts = order.parts()
    assert [len(next(parts)) for _ in range(3)] == [20] * 3
    assert len(set(islice(order, 20))) == 20


@pytest.mark.parametrize("steps_per_execution", [1, 4, 100])
@pytest.mark.parametrize("pipeline", ["memory", "workers"])
def test_pipelines_make_the_batches_of_a_lap(pipeline, steps_per_execution, datamodule):
    module = datamodule(
        pipeline=pipeline, steps_per_execution=steps_per_execution, lap_steps=7, seed=3, horizontal_flip=True
    )
    same = datamodule(lap_steps=7, seed=3, horizontal_flip=True)
    loaders = [module.train_dataloader(), same.train_dataloader()]
    for loader in loaders:
        loader.sampler.set_epoch(1)
    batches, expected = (list(chain.from_iterable(loader)) for loader in loaders)
    assert [len(labels) for _, labels in batches] == module.train_batch_sizes() == [5] * 7
    assert len(loaders[0]) == -(-7 // steps_per_execution)
    for (images, labels), (expected_images, expected_labels) in zip(batches, expected, strict=True):
        torch.testing.assert_close(images, expected_images, atol=1e-5, rtol=0)
        assert torch.equal(labels, expected_labels)


def test_a_batch_of_the_whole_training_set_makes_passes_of_one_step(datamodule):
    module = datamodule(batch_size=11, lap_steps=3, rank=Rank(rank=1, world_size=2))
    loader = module.train_dataloader()
    assert [len(labels) for _, labels in chain.from_iterable(loader)] == [11] * 3
