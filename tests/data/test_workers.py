"""dataset.pipeline=workers with worker processes."""

from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.settings import TINY

from laptime.ranks.rank import Rank
from laptime.record.files import read_epochs


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


def test_persistent_workers_follow_the_epoch(datamodule):
    loader = datamodule(pipeline="workers", num_workers=1).train_dataloader()
    for number in (0, 1):
        assert_same(epoch(loader, number), epoch(datamodule().train_dataloader(), number), atol=1e-5)


AUGMENTED: dict[str, Any] = {"pipeline": "workers", "horizontal_flip": True, "rotation_degrees": 20.0}


@pytest.mark.parametrize("changes", [{"horizontal_flip": False}, {"rotation_degrees": 0.0}, {}])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_augmented_images_do_not_depend_on_the_number_of_workers(num_workers, changes, datamodule):
    arguments = {**AUGMENTED, **changes, "seed": 3}
    loader = datamodule(**arguments, num_workers=num_workers).train_dataloader()
    alone = datamodule(**arguments, num_workers=0).train_dataloader()
    epochs = [epoch(loader, number) for number in (0, 1)]  # by persistent workers
    for number, batches in enumerate(epochs):
        assert_same(batches, epoch(alone, number))
    # As in a run that is resumed after its first epoch.
    assert_same(epoch(datamodule(**arguments, num_workers=num_workers).train_dataloader(), 1), epochs[1])


def test_augmentation_is_drawn_anew_for_each_epoch_seed_and_rank(datamodule):
    def drawn(number: int = 0, **changes: Any) -> set[tuple[float, float]]:
        loader = datamodule(**AUGMENTED, **changes).train_dataloader()
        loader.sampler.set_epoch(number)
        return {tuple(numbers) for _, numbers in loader.pipeline.loader.sampler}

    changes: list[dict[str, Any]] = [{}, {"number": 1}, {"seed": 1}, {"rank": Rank(1, world_size=2)}]
    assert all(first and not first & second for first, second in combinations([drawn(**how) for how in changes], 2))


def test_augmentation_equals_that_of_the_memory_pipeline_and_does_not_affect_dropout(datamodule):
    states = []
    for number in (0, 1):
        torch.manual_seed(0)
        loaders = [datamodule(**{**AUGMENTED, "pipeline": pipeline, "rotation_degrees": 0.0}).train_dataloader()
                   for pipeline in ("workers", "memory")]  # fmt: skip
        assert_same(*(epoch(loader, number) for loader in loaders), atol=1e-5)
        states.append(torch.get_rng_state())
    torch.manual_seed(0)
    assert all(torch.equal(state, torch.get_rng_state()) for state in states)


def test_losses_do_not_depend_on_the_number_of_workers(call):
    """Also with mixup and dropout, which draw random numbers, too."""
    asked = ("dataset.pipeline=workers", "dataset.horizontal_flip=true", "dataset.rotation_degrees=15",
             "training.mixup_alpha=0.4", "model.dropout=0.2")  # fmt: skip
    losses = []
    for num_workers in (0, 1, 2):
        folder = f"with{num_workers}"
        done = call(*TINY, *asked, f"dataset.num_workers={num_workers}", "training.epochs=2",
                    f"hydra.run.dir={folder}")  # fmt: skip
        assert done.returncode == 0, done.stderr
        losses.append(read_epochs(Path(folder))[["train_loss", "val_loss"]].to_numpy().tolist())
    assert losses[0] == losses[1] == losses[2]
