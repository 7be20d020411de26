"""The parts of an optimizer step, and the clock that tells how long each of them takes.

Training calls `on_part(name)` where a part ends. Outside of the steps that the breakdown takes apart nobody listens.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from laptime.lap.percentile import percentile
from laptime.machine.device import Device

_OF_DRAWING = ("data", "host_to_device")
_ENDS_A_STEP = "optimizer"

OnPart = Callable[[str], None]


def ignore_part(part: str) -> None:
    """Do nothing: while epochs are timed, their parts are not."""


class StepClock:
    """Tells the seconds of each part of each step, the device idle at every boundary.

    Args:
        device: is synchronised where a part ends.
        exposed_s: asked after each step for the seconds of it that were spent waiting for gradients; may answer for the
            step before, as DDP does. None: there is nobody to wait for.
        waits_in: the part that this waiting is in.

    Attributes:
        steps: seconds by part, one entry per step.
        shared: seconds by part of what belongs to all steps of the list of batches under way.
    """

    def __init__(
        self, device: Device, exposed_s: Callable[[], float] | None = None, waits_in: str = "backward"
    ) -> None:
        self.device = device
        self.steps: list[dict[str, float]] = []
        self._exposed_s = exposed_s
        self._waits_in = waits_in
        self._waited: list[float] = []
        self._step: dict[str, float] = {}
        self.shared: dict[str, float] = {}
        self._first_of_execution = 0
        self.start()

    def start(self) -> None:
        """Begin here: what was done since the last part ended counts for nothing."""
        self.device.synchronize()
        self._before = time.perf_counter()

    def on_part(self, part: str) -> None:
        """Something that is called `part` ends here."""
        self.device.synchronize()
        seconds = time.perf_counter() - self._before
        into = self._step if part in ("forward", "backward", "optimizer") else self.shared
        into[part] = into.get(part, 0.0) + seconds
        if part == _ENDS_A_STEP:
            self.steps.append(self._step)
            self._step = {}
            if self._exposed_s is not None:
                self._waited.append(self._exposed_s())
        self._before = time.perf_counter()

    def end_execution(self, counts: bool, num_drawn: int | None = None) -> None:
        """Share what belongs to several steps, drawing their batches say, among them.

        Args:
            counts: whether these steps are kept.
            num_drawn: batches that were drawn; None: as many as steps were taken.
        """
        steps = self.steps[self._first_of_execution :]
        if counts:
            for step in steps:
                for part, seconds in self.shared.items():
                    step[part] = seconds / ((num_drawn or len(steps)) if part in _OF_DRAWING else len(steps))
        else:
            del self.steps[self._first_of_execution :]
            del self._waited[self._first_of_execution :]
        self.shared = {}
        self._first_of_execution = len(self.steps)

    def parts(self) -> list[dict[str, float]]:
        """The steps, with the waiting taken out of the part that it is in; the last one's is that of the one before."""
        if self._exposed_s is None:
            return self.steps
        parts = []
        for step, waited_s in zip(self.steps, [*self._waited[1:], *self._waited[-1:]], strict=True):
            wait_s = min(waited_s, step[self._waits_in])
            parts.append(step | {self._waits_in: step[self._waits_in] - wait_s, "communication": wait_s})
        return parts


def typical(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Seconds by part of a typical step: the mean of those whose time lies between the quartiles.

    A median of each part would not add up to a step, and a mean over all would follow a few disturbed ones.

    Args:
        steps: seconds by part, the same parts in each.
    """
    totals = np.array([sum(step.values()) for step in steps])
    low, high = np.quantile(totals, [0.25, 0.75])
    kept = [step for step, total in zip(steps, totals, strict=True) if low <= total <= high]
    return {part: statistics.fmean(step[part] for step in kept) for part in steps[0]}


def percentiles(totals: Sequence[float]) -> dict[str, float | None]:
    """p50, p95 and p99 of step times; None where there are too few steps."""
    return {f"step_p{q}_s": percentile(totals, q) for q in (50, 95, 99)}
