"""The phases of an optimizer step, and the clocks that tell how long each of them takes.

Laptime's own training calls `on_phase(name)` where a phase ends (StepClock); outside of the steps that the breakdown
takes apart nobody listens. Other people's trainings are heard from outside: where a phase begins and ends
(PhaseClock).
"""

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from laptime.lap.percentile import percentile
from laptime.machine.device import Device

DATA_PHASES = ("data", "host_to_device")
_ENDS_A_STEP = "optimizer"

OnPhase = Callable[[str], None]


def ignore_phase(part: str) -> None:
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
        self._first_of_group = 0
        self.start()

    def start(self) -> None:
        """Begin here: what was done since the last part ended counts for nothing."""
        self.device.synchronize()
        self._before = time.perf_counter()

    def on_phase(self, part: str) -> None:
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

    def end_step_group(self, counts: bool, num_drawn: int | None = None) -> None:
        """Share what belongs to several steps, drawing their batches say, among them.

        Args:
            counts: whether these steps are kept.
            num_drawn: batches that were drawn; None: as many as steps were taken.
        """
        steps = self.steps[self._first_of_group :]
        if counts:
            for step in steps:
                for part, seconds in self.shared.items():
                    step[part] = seconds / ((num_drawn or len(steps)) if part in DATA_PHASES else len(steps))
        else:
            del self.steps[self._first_of_group :]
            del self._waited[self._first_of_group :]
        self.shared = {}
        self._first_of_group = len(self.steps)

    def step_seconds(self) -> list[dict[str, float]]:
        """The steps, with the waiting taken out of the part that it is in; the last one's is that of the one before."""
        if self._exposed_s is None:
            return self.steps
        return without_waiting(self.steps, self._waited, self._waits_in)


def without_waiting(
    steps: Sequence[dict[str, float]], waited_s: Sequence[float], waits_in: str
) -> list[dict[str, float]]:
    """Steps with the waiting for other ranks as a phase of its own.

    Args:
        steps: seconds by phase.
        waited_s: asked for after each step: DDP answers for the step before. The last step is given the last answer.
        waits_in: the phase that contains the waiting.
    """
    parts = []
    for step, seconds in zip(steps, [*waited_s[1:], *waited_s[-1:]], strict=True):
        wait_s = min(seconds, step[waits_in])
        parts.append(step | {waits_in: step[waits_in] - wait_s, "communication": wait_s})
    return parts


class PhaseClock:
    """Tells the seconds of each phase of each step of a training that is heard from outside.

    Phases may lie within each other (Lightning's optimizer step holds the forward pass): each has the time that is in
    no inner one. What is in none is `rest`. The device is idle at every boundary.

    Args:
        device: is synchronized at every boundary.

    Attributes:
        steps: seconds by phase, one entry per step.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.steps: list[dict[str, float]] = []
        self._phases: list[str] = []
        self._step: dict[str, float] = {}
        self._before = self._now()

    def _now(self) -> float:
        self.device.synchronize()
        return time.perf_counter()

    def enter(self, phase: str) -> None:
        """A phase begins."""
        self._note()
        self._phases.append(phase)

    def exit(self, phase: str) -> None:
        """A phase ends; one that nobody has seen begin is no phase."""
        if self._phases and self._phases[-1] == phase:
            self._note()
            self._phases.pop()

    def mark(self, phase: str) -> None:
        """What was done since the last boundary is that phase."""
        now = self._now()
        self._step[phase] = self._step.get(phase, 0.0) + now - self._before
        self._before = now

    def _note(self) -> None:
        self.mark(self._phases[-1] if self._phases else "rest")

    def pause(self) -> None:
        """What follows is no part of a step, until `resume`."""
        self._note()

    def resume(self) -> None:
        """What was done since `pause` counts for nothing."""
        self._before = self._now()

    def end_step(self) -> None:
        """A step ends here."""
        self._note()
        self.steps.append(self._step)
        self._step = {}


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
