"""One cycle: up along a line and down along another."""

from torch.optim import Optimizer

from laptime.schedulers.step_schedule import StepSchedule, check_share


class OneCycle(StepSchedule):
    """From a share of the optimizer's learning rate up to it, then down to another share, along straight lines.

    Args:
        optimizer, epochs, num_steps_per_epoch: as in StepSchedule.
        warmup_share: of all steps, for the way up, in [0, 1).
        start, end: shares of the learning rate, in [0, 1).

    Raises:
        ValueError: an argument is out of its range.

    Source: Smith and Topin 2019, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates".
    There the momentum moves the other way; here it stays.
    """

    def __init__(
        self, optimizer: Optimizer, epochs: int, num_steps_per_epoch: int, warmup_share: float, start: float, end: float
    ) -> None:
        check_share("warmup_share", warmup_share)
        check_share("start", start)
        check_share("end", end)
        self.start = start
        self.end = end
        self.num_warmup_steps = round(warmup_share * epochs * num_steps_per_epoch)
        super().__init__(optimizer, epochs, num_steps_per_epoch)

    def share(self, step: int) -> float:
        if step < self.num_warmup_steps:
            return self.start + (1 - self.start) * step / self.num_warmup_steps
        done = (step - self.num_warmup_steps) / max(1, self.num_steps - self.num_warmup_steps)
        return 1 - (1 - self.end) * done
