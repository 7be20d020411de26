"""The protocols that Laptime needs a LightningModule to follow beyond Lightning's own API, one for each use.

Laptime checks for a protocol, never for a class. (`CountsSamples`, which the recorder needs, is in
`laptime.lap.epoch_recorder`.) At run time, `isinstance` with a protocol doesn't find submodules, because nn.Module
doesn't keep them as plain attributes. So the protocols reach the network through the stepper.
"""

import inspect
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from laptime.errors import UserError
from laptime.lap.epoch_sums import Means, Sums
from laptime.lap.timed_loader import Batch
from laptime.training.stepper import Stepper
from laptime.training.weight_average import WeightAverage

_ABSENT = object()


@runtime_checkable
class HasStepper(Protocol):
    """A module whose network can be distributed over ranks, and compiled before the first epoch.

    Attributes:
        stepper: takes the optimizer steps.
    """

    stepper: Stepper


@runtime_checkable
class TakesSteps(HasStepper, Protocol):
    """A module that can also train outside Lightning's loop, where the breakdown times the phases of its steps.

    Attributes:
        train_sums: losses and hits of the batches that `take_steps` has trained on.
    """

    train_sums: Sums

    def take_steps(self, optimizer: Optimizer, step_group: list[Batch]) -> None:
        """Take one optimizer step per batch."""
        ...


@runtime_checkable
class Retrainable(HasStepper, Protocol):
    """A module whose network Laptime can copy and train again: in the bare loop, and in the learning rate range test.

    Attributes:
        make_optimizer: takes the network's parameters, returns an optimizer.
        make_scheduler: takes the optimizer, returns a learning rate scheduler or None.
        make_average: takes the network, returns the average of its weights.
        seed: the seed, which with the epoch and the rank determines all randomness of the training.
        train_sums: losses and hits of this epoch so far, on this rank.
    """

    make_optimizer: Callable[..., Optimizer]
    make_scheduler: Callable[[Optimizer], LRScheduler | None]
    make_average: Callable[[nn.Module], WeightAverage]
    seed: int
    train_sums: Sums


@runtime_checkable
class HasTestMeans(Protocol):
    """A module that keeps the results of its last test.

    Attributes:
        test_means: loss and accuracy over all ranks; None before a test.
    """

    test_means: Means | None


def missing_attributes(module: object, capability: type) -> str:
    """Say which attributes of a protocol a module lacks: `MyModule has no stepper, take_steps`."""
    names = {name for base in capability.__mro__ for name in (*inspect.get_annotations(base), *vars(base))}
    required = sorted(name for name in names if not name.startswith("_"))
    absent = [name for name in required if inspect.getattr_static(module, name, _ABSENT) is _ABSENT]
    return f"{type(module).__name__} has no {', '.join(absent)}"


def configured_optimizer(module: pl.LightningModule) -> tuple[Optimizer, Any]:
    """Return the optimizer from a module's `configure_optimizers`, and the learning rate scheduler or None.

    Raises:
        UserError: the module returns no optimizer or more than one.
    """
    returned: Any = module.configure_optimizers()
    setup = {"optimizer": returned} if isinstance(returned, Optimizer) else returned
    if not isinstance(setup, dict) or "optimizer" not in setup:
        raise UserError(
            f"{type(module).__name__}: configure_optimizers() returns {type(returned).__name__}; Laptime trains with "
            'one optimizer. Return an optimizer, or a dict with "optimizer" and "lr_scheduler".'
        )
    scheduler = setup.get("lr_scheduler")
    return setup["optimizer"], scheduler["scheduler"] if isinstance(scheduler, dict) else scheduler
