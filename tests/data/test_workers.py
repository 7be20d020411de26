"""dataset.pipeline=workers with processes of its own."""

from itertools import chain

import torch


def epoch(loader, number=0):
    """All (images, labels) of one training epoch, ungrouped."""
    loader.sampler.set_epoch(number)
    return list(chain.from_iterable(loader))


def assert_same(batches, others, atol=0.0):
    assert len(batches) == len(others) > 1
    for (images, labels), (other_images, other_labels) in zip(batches, others, strict=True):
        torch.testing.assert_close(images, other_images, atol=atol, rtol=0)
        assert torch.equal(labels, other_labels)


def test_worker_processes_give_the_same_batches_as_the_training_process(datamodule):
    module = datamodule(pipeline="workers", num_workers=2)
    expected = datamodule(pipeline="workers", num_workers=0)
    assert_same(epoch(module.train_dataloader()), epoch(expected.train_dataloader()))


def test_worker_processes_that_stay_follow_the_epoch(datamodule):
    loader = datamodule(pipeline="workers", num_workers=1).train_dataloader()
    for number in (0, 1):
        assert_same(epoch(loader, number), epoch(datamodule().train_dataloader(), number), atol=1e-5)
