"""What Laptime asks of a module beyond what Lightning asks: one protocol for each thing that can be done with it.

A module is asked for what is needed and not for its class. `CountsSamples`, which the recorder asks for, is in
`laptime.lap.epoch_recorder`. At run time a protocol looks for plain attributes, where nn.Module does not keep its
submodules; so the network is the stepper's, and no attribute of its own.
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
    """A module that trains outside Lightning's loop too: the breakdown times the parts of its steps.

    Attributes:
        train_sums: of what `take_steps` has trained on.
    """

    train_sums: Sums

    def take_steps(self, optimizer: Optimizer, step_group: list[Batch]) -> None:
        """One optimizer step per batch."""
        ...


@runtime_checkable
class Retrainable(HasStepper, Protocol):
    """A module that tells how a copy of its network is trained: in the bare loop, or in the learning rate range test.

    Attributes:
        make_optimizer: from the network's parameters to an optimizer.
        make_scheduler: from the optimizer to a learning rate scheduler, or to None.
        make_average: from the network to the average of its weights.
        seed: what is random while training follows from it, the epoch and the rank.
        train_sums: of this epoch so far, on this rank.
    """

    make_optimizer: Callable[..., Optimizer]
    make_scheduler: Callable[[Optimizer], LRScheduler | None]
    make_average: Callable[[nn.Module], WeightAverage]
    seed: int
    train_sums: Sums


@runtime_checkable
class HasTestMeans(Protocol):
    """A module that has the figures of its last test.

    Attributes:
        test_means: over all ranks; None: there was no test.
    """

    test_means: Means | None


def missing_attributes(module: object, capability: type) -> str:
    """What a module lacks of a protocol, for a message: `MyModule has no stepper, take_steps`."""
    names = {name for base in capability.__mro__ for name in (*inspect.get_annotations(base), *vars(base))}
    asked = sorted(name for name in names if not name.startswith("_"))
    absent = [name for name in asked if inspect.getattr_static(module, name, _ABSENT) is _ABSENT]
    return f"{type(module).__name__} has no {', '.join(absent)}"


def configured_optimizer(module: pl.LightningModule) -> tuple[Optimizer, Any]:
    """What a module's `configure_optimizers` makes: one optimizer, and its learning rate scheduler or None.

    Raises:
        UserError: the module has no optimizer, or several.
    """
    made: Any = module.configure_optimizers()
    parts = {"optimizer": made} if isinstance(made, Optimizer) else made
    if not isinstance(parts, dict) or "optimizer" not in parts:
        raise UserError(
            f"{type(module).__name__}: configure_optimizers() gives {type(made).__name__}; Laptime trains with one "
            'optimizer. Return it, or a dict with "optimizer" and "lr_scheduler".'
        )
    scheduler = parts.get("lr_scheduler")
    return parts["optimizer"], scheduler["scheduler"] if isinstance(scheduler, dict) else scheduler
