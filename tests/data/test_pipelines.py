"""The pipelines, the order of samples, the clock, and the DataModule that combines them."""

from collections import Counter
from itertools import chain, pairwise
from types import SimpleNamespace

import pytest
import torch

from laptime.data.order import EpochOrder, epoch_seed
from laptime.errors import UserError
from laptime.lap import clock as lap_clock
from laptime.lap.clock import LapClock
from laptime.lap.timed_loader import TimedLoader, batch_sizes
from laptime.machine.device import Device
from laptime.ranks.rank import Rank

pytestmark = pytest.mark.unit


def epoch(module, number=0):
    """All (images, labels) of one training epoch, ungrouped."""
    loader = module.train_dataloader()
    loader.sampler.set_epoch(number)
    return list(chain.from_iterable(loader))


def images_of(batches):
    return torch.cat([images for images, _ in batches])


def multiset(images):
    return Counter(image.numpy().tobytes() for image in images)


def assert_same_batches(first, second, atol=0.0):
    assert len(first) == len(second)
    for (images, labels), (other_images, other_labels) in zip(first, second, strict=True):
        torch.testing.assert_close(images, other_images, atol=atol, rtol=0)
        assert torch.equal(labels, other_labels)


@pytest.mark.parametrize("shape", [[1, 6, 5], [3, 4, 7]])
@pytest.mark.parametrize("number", [0, 3])
def test_both_pipelines_give_the_same_batches(shape, number, datamodule):
    memory = epoch(datamodule(shape=shape, pipeline="memory", seed=4), number)
    workers = epoch(datamodule(shape=shape, pipeline="workers", seed=4), number)
    assert_same_batches(memory, workers, atol=1e-5)


@pytest.mark.parametrize("pipeline", ["memory", "workers"])
def test_both_pipelines_give_the_same_evaluation_batches(pipeline, datamodule):
    module, other = datamodule(pipeline=pipeline, val_fraction=0.4), datamodule(val_fraction=0.4)
    assert_same_batches(list(module.val_dataloader()), list(other.val_dataloader()), atol=1e-5)
    assert_same_batches(list(module.test_dataloader()), list(other.test_dataloader()), atol=1e-5)


@pytest.mark.parametrize("pipeline", ["memory", "workers"])
def test_batches_are_float32_images_with_int64_labels(pipeline, datamodule):
    module = datamodule(pipeline=pipeline)
    for images, labels in [*epoch(module), *module.test_dataloader()]:
        assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
        assert images.shape == (len(labels), 1, 6, 5)


@pytest.mark.parametrize("pipeline", ["memory", "workers"])
def test_every_training_sample_comes_exactly_once_per_epoch(pipeline, datamodule):
    module = datamodule(pipeline=pipeline)
    first, second = (multiset(images_of(epoch(module, number))) for number in (0, 1))
    assert first == second
    assert first.total() == len(first) == module.num_train


@pytest.mark.parametrize("pipeline", ["memory", "workers"])
def test_another_epoch_has_another_order(pipeline, datamodule):
    module = datamodule(pipeline=pipeline)
    orders = [images_of(epoch(module, number)) for number in (0, 1, 2)]
    assert not any(torch.equal(before, after) for before, after in pairwise(orders))


def test_another_seed_has_another_order(datamodule):
    assert not torch.equal(images_of(epoch(datamodule(seed=0))), images_of(epoch(datamodule(seed=1))))


def test_a_later_epoch_does_not_depend_on_the_epochs_before(datamodule):
    resumed, whole = (datamodule(horizontal_flip=True, rotation_degrees=20.0) for _ in range(2))
    for number in range(3):
        expected = epoch(whole, number)
    assert_same_batches(epoch(resumed, 2), expected)


@pytest.mark.parametrize("pipeline", ["memory", "workers"])
def test_the_last_partial_batch_is_kept(pipeline, datamodule):
    module = datamodule(pipeline=pipeline)
    assert [len(labels) for _, labels in epoch(module)] == [5, 5, 5, 5, 3] == module.train_batch_sizes()


@pytest.mark.parametrize("pipeline", ["memory", "workers"])
def test_evaluation_covers_every_sample_once_in_order(pipeline, datamodule, synthetic):
    module = datamodule(pipeline=pipeline)
    for _ in range(2):
        batches = list(module.test_dataloader())
        _, test, _ = synthetic().load()
        expected = (test.images.float() / 255 - 0.5) / 0.25
        torch.testing.assert_close(images_of(batches), expected, atol=1e-5, rtol=0)
        assert torch.equal(torch.cat([labels for _, labels in batches]), test.labels)
        assert [len(labels) for _, labels in batches] == [4, 4, 3]


@pytest.mark.parametrize("pipeline", ["memory", "workers"])
@pytest.mark.parametrize("steps", [2, 3, 100])
def test_steps_per_execution_only_groups(pipeline, steps, datamodule):
    expected = epoch(datamodule(pipeline=pipeline))
    module = datamodule(pipeline=pipeline, steps_per_execution=steps)
    step_groups = list(module.train_dataloader())
    assert [len(step_group) for step_group in step_groups] == batch_sizes(5, steps)
    assert len(module.train_dataloader()) == len(step_groups)
    assert_same_batches(list(chain.from_iterable(step_groups)), expected)


@pytest.mark.parametrize(
    "augmentation",
    [{"horizontal_flip": True}, {"rotation_degrees": 30.0}, {"horizontal_flip": True, "rotation_degrees": 30.0}],
    ids=["flip", "rotation", "both"],
)
def test_steps_per_execution_does_not_change_augmented_batches(augmentation, datamodule):
    one = epoch(datamodule(**augmentation, steps_per_execution=1))
    many = epoch(datamodule(**augmentation, steps_per_execution=3))
    assert_same_batches(one, many, atol=1e-5)


def test_large_batches_make_short_step_groups(datamodule):
    # 2 MiB of float32 per image: 8 batches of 4 images reach the maximum of 64 MiB per step group.
    module = datamodule(shape=[8, 256, 256], num_train=40, num_test=1, batch_size=4, steps_per_execution=100)
    assert [len(step_group) for step_group in module.train_dataloader()] == [8, 2]


def test_gathers_are_limited_to_the_size_of_caches(datamodule):
    # 64 KiB of float32 per image: one gather has 8 batches of 4 images, while step groups have 5 batches.
    module = datamodule(shape=[1, 128, 128], num_train=43, num_test=1, batch_size=4, steps_per_execution=5)
    one_by_one = datamodule(shape=[1, 128, 128], num_train=43, num_test=1, batch_size=4, steps_per_execution=1)
    assert [len(step_group) for step_group in module.train_dataloader()] == [5, 5, 1]
    assert_same_batches(epoch(module), epoch(one_by_one))


def test_augmentation_changes_training_batches_only(datamodule):
    plain, turned = datamodule(val_fraction=0.4), datamodule(val_fraction=0.4, rotation_degrees=45.0)
    assert not torch.equal(images_of(epoch(plain)), images_of(epoch(turned)))
    assert_same_batches(list(plain.val_dataloader()), list(turned.val_dataloader()))
    assert_same_batches(list(plain.test_dataloader()), list(turned.test_dataloader()))


@pytest.mark.parametrize("pipeline", ["memory", "workers"])
def test_augmentation_is_drawn_anew_every_epoch(pipeline, datamodule):
    module = datamodule(pipeline=pipeline, rotation_degrees=45.0)
    first, second = (multiset(images_of(epoch(module, number))) for number in (0, 1))
    assert not first.keys() & second.keys()


@pytest.mark.parametrize("pipeline", ["memory", "workers"])
def test_ranks_share_one_epoch_without_overlap(pipeline, datamodule):
    whole = multiset(images_of(epoch(datamodule(pipeline=pipeline))))
    ranks = [epoch(datamodule(pipeline=pipeline, batch_size=3, rank=Rank(rank=rank, world_size=2))) for rank in (0, 1)]
    shards = [multiset(images_of(batches)) for batches in ranks]
    assert [shard.total() for shard in shards] == [11, 11]
    assert not shards[0].keys() & shards[1].keys()
    assert sum(shards, Counter()) <= whole


@pytest.mark.parametrize(("num_samples", "world_size"), [(23, 1), (23, 2), (24, 3), (7, 4), (5, 5)])
def test_ranks_of_an_order_do_not_overlap_and_are_equally_long(num_samples, world_size):
    orders = [EpochOrder(num_samples, 0, rank, world_size) for rank in range(world_size)]
    shards = [order.permutation().tolist() for order in orders]
    assert {len(shard) for shard in shards} == {len(orders[0])} == {num_samples // world_size}
    together = list(chain.from_iterable(shards))
    assert len(set(together)) == len(together)
    assert set(together) <= set(range(num_samples))


def test_dropped_samples_change_with_the_epoch():
    dropped = set()
    for number in range(20):
        order = EpochOrder(5, 0, 0, 2)
        other = EpochOrder(5, 0, 1, 2)
        order.set_epoch(number)
        other.set_epoch(number)
        dropped |= set(range(5)) - set(order) - set(other)
    assert len(dropped) > 1


def test_iterating_an_order_gives_its_permutation():
    order = EpochOrder(9, 3)
    order.set_epoch(2)
    assert list(order) == order.permutation().tolist()


def test_seeds_of_epochs_and_ranks_are_all_different():
    seeds = {epoch_seed(seed, epoch, rank) for seed in range(10) for epoch in range(20) for rank in range(8)}
    assert len(seeds) == 10 * 20 * 8


def test_seeds_of_epochs_are_valid_for_a_torch_generator():
    for seed in (0, 1, 2**32 - 1):
        assert torch.Generator().manual_seed(epoch_seed(seed, 5)).initial_seed() == epoch_seed(seed, 5)


def test_batch_sizes_add_up():
    assert batch_sizes(23, 5) == [5, 5, 5, 5, 3]
    assert batch_sizes(20, 5) == [5, 5, 5, 5]
    assert batch_sizes(3, 5) == [3]
    assert batch_sizes(0, 5) == []


class FakeTime:
    """A fake clock that tests advance."""

    def __init__(self):
        self.seconds = 100.0

    def perf_counter(self):
        return self.seconds


class SlowPipeline:
    """Three step groups. Each takes 2 s to make; finding the end takes 1 s."""

    def __init__(self, clock):
        self.clock = clock

    def __len__(self):
        return 3

    def step_groups(self):
        for _ in range(3):
            self.clock.seconds += 2
            yield []
        self.clock.seconds += 1


@pytest.fixture
def clock(monkeypatch):
    clock = FakeTime()
    monkeypatch.setattr(lap_clock, "time", clock)
    return clock


@pytest.fixture
def timed(clock, cpu):
    return TimedLoader(SlowPipeline(clock), EpochOrder(3, 0), LapClock(cpu), Rank())


def test_waiting_for_data_excludes_training(timed, clock):
    for _ in timed:
        clock.seconds += 10
    assert timed.clock.wait_s == 3 * 2 + 1


def test_waiting_time_is_updated_during_training(timed, clock):
    waited = []
    for _ in timed:
        waited.append(timed.clock.wait_s)
        clock.seconds += 10
    assert waited == [2, 4, 6]


def test_an_epoch_starts_when_its_first_batch_is_requested(timed, clock):
    batches = iter(timed)
    clock.seconds = 500.0
    next(batches)
    assert timed.clock.started_at == 500.0


def test_every_epoch_starts_its_own_count(timed, clock):
    list(timed)
    before = clock.seconds
    list(timed)
    assert (timed.clock.started_at, timed.clock.wait_s) == (before, 7)


def test_an_epoch_starts_on_a_synchronized_device(clock, monkeypatch):
    device = Device(requested="mps", used="mps", name="a chip", num_devices=1, memory_bytes=None)

    def synchronize():
        clock.seconds += 50

    monkeypatch.setattr(torch.accelerator, "synchronize", synchronize)
    loader = TimedLoader(SlowPipeline(clock), EpochOrder(3, 0), LapClock(device), Rank())
    list(loader)
    assert (loader.clock.started_at, loader.clock.wait_s) == (150.0, 7)


def test_lightning_finds_the_order_as_the_loaders_sampler(timed):
    timed.sampler.set_epoch(4)
    assert timed.sampler.epoch == 4
    assert len(timed) == 3


def test_split_holds_out_the_requested_fraction(datamodule):
    module = datamodule(val_fraction=0.4)
    assert (module.num_train, module.num_val, module.num_test) == (14, 9, 11)
    assert module.val_batch_sizes() == [4, 4, 1]


def test_split_parts_make_up_the_training_set(datamodule):
    whole = multiset(images_of(epoch(datamodule())))
    module = datamodule(val_fraction=0.4)
    train, val = multiset(images_of(epoch(module))), multiset(images_of(module.val_dataloader()))
    assert train + val == whole


def test_ranks_validate_every_held_out_sample_once(datamodule):
    whole = multiset(images_of(list(datamodule(val_fraction=0.4, seed=7).val_dataloader())))
    ranks = [datamodule(val_fraction=0.4, seed=7, rank=Rank(rank=rank, world_size=2)) for rank in (0, 1)]
    shards = [multiset(images_of(list(rank.val_dataloader()))) for rank in ranks]
    assert shards[0] + shards[1] == whole


def test_another_seed_holds_out_other_samples(datamodule):
    first, second = (datamodule(val_fraction=0.4, seed=seed) for seed in (0, 1))
    assert multiset(images_of(first.val_dataloader())) != multiset(images_of(second.val_dataloader()))


def test_official_test_set_does_not_depend_on_the_seed(datamodule):
    first, second = (datamodule(val_fraction=0.4, seed=seed) for seed in (0, 1))
    assert_same_batches(list(first.test_dataloader()), list(second.test_dataloader()))


def test_val_fraction_0_trains_on_everything_and_validates_on_nothing(datamodule):
    module = datamodule(val_fraction=0.0)
    assert (module.num_train, module.num_val) == (23, 0)
    assert list(module.val_dataloader()) == []


@pytest.mark.parametrize(("refused", "accepted"), [(0.02, 0.03), (0.99, 0.95)])
def test_split_with_an_empty_part_is_refused_and_one_sample_accepted(refused, accepted, datamodule):
    module = datamodule(val_fraction=accepted, batch_size=1)
    assert 1 in (module.num_train, module.num_val)
    with pytest.raises(UserError, match=r"dataset\.val_fraction="):
        datamodule(val_fraction=refused, batch_size=1)


def test_limit_keeps_the_first_samples_of_training_and_test_set(datamodule, synthetic):
    module = datamodule(limit=8)
    assert (module.num_train, module.num_test) == (8, 8)
    expected = (synthetic().load()[0].images[:8].float() / 255 - 0.5) / 0.25
    batches = images_of(epoch(module))
    order = EpochOrder(8, 0).permutation()
    torch.testing.assert_close(batches, expected[order], atol=1e-5, rtol=0)


def test_limit_above_the_size_keeps_all(datamodule):
    module = datamodule(limit=1000)
    assert (module.num_train, module.num_test) == (23, 11)


def test_batch_larger_than_the_training_set_is_refused_and_an_equal_one_accepted(datamodule):
    assert datamodule(batch_size=23).train_batch_sizes() == [23]
    with pytest.raises(UserError, match=r"training\.batch_size=24.*23 samples"):
        datamodule(batch_size=24)


def test_batch_larger_than_the_samples_of_a_rank_is_refused_and_an_equal_one_accepted(datamodule):
    assert datamodule(batch_size=11, rank=Rank(world_size=2)).train_batch_sizes() == [11]
    with pytest.raises(UserError, match=r"training\.batch_size=12.*2 ranks"):
        datamodule(batch_size=12, rank=Rank(world_size=2))


def test_the_workers_pipeline_refuses_channels_that_pil_does_not_support(datamodule):
    assert len(epoch(datamodule(shape=[2, 4, 4], pipeline="memory"))) == 5
    with pytest.raises(UserError, match=r"dataset\.pipeline=memory"):
        datamodule(shape=[2, 4, 4], pipeline="workers")


def test_the_checksum_is_that_of_the_data_set(datamodule, synthetic):
    assert datamodule().checksum == synthetic().load()[2]


def test_lightning_does_not_move_batches_again(datamodule):
    batch = SimpleNamespace()
    assert datamodule().transfer_batch_to_device(batch, torch.device("meta"), 0) is batch


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda labels: labels.fill_(9), "labels are from [09] to 9"),
        (lambda labels: labels[:1].fill_(4), "labels are from 0 to 4. With 4 classes they must be from 0 to 3"),
        (lambda labels: labels.sub_(1), "labels are from -1 to"),
        (lambda labels: labels.masked_fill_(labels == 2, 1), r"no training samples of class 2 \(4 classes"),
    ],
    ids=["too large", "one too large", "negative", "an empty class"],
)
def test_invalid_or_missing_labels_are_refused(change, message, datamodule, synthetic, monkeypatch):
    load = type(synthetic()).load

    def damaged(self):
        train, test, checksum = load(self)
        change(train.labels)
        return train, test, checksum

    monkeypatch.setattr(type(synthetic()), "load", damaged)
    with pytest.raises(UserError, match=message):
        datamodule()
