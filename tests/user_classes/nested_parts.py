"""Networks, callbacks and schedulers that take other objects as arguments, or that need another trainer."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, OneCycleLR, ReduceLROnPlateau, SequentialLR, StepLR

from laptime.schedulers.one_cycle import OneCycle


class Layers(nn.Sequential):
    """Flattens images, and applies the given layers, a layer that `last` creates, and a linear layer for the logits."""

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        layers: list[nn.Module],
        last: Callable[[], nn.Module],
        named: dict[str, nn.Module],
    ) -> None:
        assert all(isinstance(layer, nn.Module) for layer in (*layers, *named.values())), layers
        pixels = math.prod(input_shape)
        super().__init__(nn.Flatten(), *layers, *named.values(), last(), nn.Linear(pixels, num_classes))


class Holds(nn.Module):
    """A network around another one."""

    def __init__(self, inner: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.inner, self.head = inner, nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.inner(images.flatten(1)))
        return logits


class LitNet(pl.LightningModule):
    """Has a training step of its own."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.layer = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(images.flatten(1))
        return logits

    def training_step(self, *_: Any) -> Tensor:
        raise AssertionError("never called")

    def configure_optimizers(self) -> Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def lit_net(num_classes: int) -> nn.Module:
    return LitNet(num_classes)


def around_lit_net(num_classes: int) -> nn.Module:
    return nn.Sequential(LitNet(num_classes))


class HasTrainingStep(nn.Sequential):
    """A plain network that has a method called training_step."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))

    def training_step(self) -> None: ...


class LitData(pl.LightningDataModule): ...


class Inner(pl.Callback):
    """A callback that takes a module as an argument."""

    def __init__(self, inner: nn.Module, others: Sequence[Any] = ()) -> None:
        assert isinstance(inner, nn.Module)
        self.inner, self.others = inner, others


class OwnOneCycle(OneCycleLR): ...


class OwnPlateau(ReduceLROnPlateau):
    """Maximizes its metric."""

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer, mode="max")


def one_cycle(optimizer: Optimizer) -> LRScheduler:
    return OneCycleLR(optimizer, 0.1, total_steps=100)


def one_cycle_after_another(optimizer: Optimizer) -> LRScheduler:
    return SequentialLR(optimizer, [StepLR(optimizer, 1), OneCycleLR(optimizer, 0.1, total_steps=100)], [1])


def own_one_cycle_chained(optimizer: Optimizer, num_steps_per_epoch: int) -> LRScheduler:
    return ChainedScheduler([OneCycle(optimizer, 2, num_steps_per_epoch, 0.3, 0.04, 1e-4), StepLR(optimizer, 1)])


def own_one_cycle_after_another(optimizer: Optimizer, num_steps_per_epoch: int) -> LRScheduler:
    return SequentialLR(
        optimizer, [StepLR(optimizer, 1), OneCycle(optimizer, 2, num_steps_per_epoch, 0.3, 0.04, 1e-4)], [1]
    )


def step_after_step(optimizer: Optimizer) -> LRScheduler:
    return SequentialLR(optimizer, [StepLR(optimizer, 1), StepLR(optimizer, 2)], [1])


def plateau_of_more(optimizer: Optimizer) -> LRScheduler:
    return ReduceLROnPlateau(optimizer, mode="max")


class OwnStopping(pl.callbacks.EarlyStopping):
    """Monitors the accuracy, but minimizes it unless `mode` is given."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__("val_accuracy", **arguments)


class Misconfigured(pl.Callback):
    """Fails with an exception of Lightning."""

    def on_train_epoch_end(self, *_: Any) -> None:
        from pytorch_lightning.utilities.exceptions import MisconfigurationException

        raise MisconfigurationException("the callback is misconfigured")
