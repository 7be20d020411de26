"""The base class of schedules that set the learning rate at every optimizer step."""

from abc import abstractmethod

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class StepSchedule(LRScheduler):
    """A learning rate that depends only on the number of optimizer steps taken. Laptime steps it after each of them,
    and schedulers of other classes once per epoch (or lap).

    Args:
        optimizer: the schedule multiplies its `lr`.
        epochs: number of epochs of the whole training, or of its laps with training.max_steps.
        num_steps_per_epoch: optimizer steps per epoch (or lap).

    Attributes:
        num_steps: optimizer steps of the whole training.
    """

    def __init__(self, optimizer: Optimizer, epochs: int, num_steps_per_epoch: int) -> None:
        self.num_steps = epochs * num_steps_per_epoch
        super().__init__(optimizer)

    @abstractmethod
    def factor(self, step: int) -> float:
        """The factor by which the optimizer's `lr` is multiplied at a step.

        Args:
            step: number of optimizer steps taken, 0 to num_steps. At num_steps, training is over.
        """

    def step(self, epoch: int | None = None) -> None:
        # torch's own method takes 5 µs for its checks, this one less than 1 µs.
        # torch's constructor calls it once, and `last_epoch` starts at -1.
        self.last_epoch += 1
        factor = self.factor(min(self.last_epoch, self.num_steps))
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * factor

    def get_last_lr(self) -> list[float | Tensor]:
        return [group["lr"] for group in self.optimizer.param_groups]


def check_fraction(key: str, value: float) -> None:
    """Raise ValueError unless 0 <= value < 1."""
    if not 0 <= value < 1:
        raise ValueError(f"{key}={value}: must be in [0, 1).")
