"""What schedules that move the learning rate at every optimizer step have in common."""

from abc import abstractmethod

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class StepSchedule(LRScheduler):
    """The learning rate as a function of the optimizer steps taken, and of nothing else. Stepped after each of them.

    A scheduler of any other kind is stepped once per epoch.

    Args:
        optimizer: its `lr` is what the schedule is a share of.
        epochs: of the whole training.
        num_steps_per_epoch: optimizer steps of each.

    Attributes:
        num_steps: of the whole training.
    """

    def __init__(self, optimizer: Optimizer, epochs: int, num_steps_per_epoch: int) -> None:
        self.num_steps = epochs * num_steps_per_epoch
        super().__init__(optimizer)

    @abstractmethod
    def share(self, step: int) -> float:
        """What the learning rate of a step is, as a share of the optimizer's own.

        Args:
            step: from 0 to num_steps; the latter is where the last step has left it.
        """

    def step(self, epoch: int | None = None) -> None:
        # Without the checks of torch's own, which take 5 µs: this takes less than 1.
        # Torch's class calls it once as it is made, and counts in `last_epoch` from -1, whatever is counted.
        self.last_epoch += 1
        share = self.share(min(self.last_epoch, self.num_steps))
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * share

    def get_last_lr(self) -> list[float | Tensor]:
        return [group["lr"] for group in self.optimizer.param_groups]


def check_share(key: str, value: float) -> None:
    """Raise ValueError where a share of the steps or of the learning rate is none."""
    if not 0 <= value < 1:
        raise ValueError(f"{key}={value}: must lie in [0, 1), a share of 1.")
