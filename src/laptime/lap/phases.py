"""The phases of an optimizer step, and two clocks that time them.

Laptime's own training calls `on_phase(name)` at the end of each phase. In the
instrumented steps of the breakdown, `on_phase` is a StepClock; in all other steps it is `ignore_phase`, which does
nothing. A PhaseClock is for trainings that Laptime only times, where hooks report the start and end of a phase.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from laptime.lap.percentile import percentile
from laptime.machine.device import Device

_DATA_PHASES = ("data", "host_to_device")
_LAST_PHASE = "optimizer"

OnPhase = Callable[[str], None]


def ignore_phase(phase: str) -> None:
    """Do nothing: the phases of timed epochs are not measured."""


class StepClock:
    """Times each phase of each step. The device is synchronized at every boundary.

    Args:
        device: is synchronized at the end of each phase.
        exposed_s: called after each step; returns the seconds spent waiting for gradients in the previous step, as DDP
            reports them. None: there is only one rank.
        waits_in: the phase that contains this waiting.

    Attributes:
        steps: seconds by phase, one entry per step.
        shared: seconds by phase that belong to all steps of the current step group.
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
        """Start timing now, and ignore the time since the last phase."""
        self.device.synchronize()
        self._before = time.perf_counter()

    def on_phase(self, phase: str) -> None:
        """End a phase."""
        self.device.synchronize()
        seconds = time.perf_counter() - self._before
        phases = self._step if phase in ("forward", "backward", "optimizer") else self.shared
        phases[phase] = phases.get(phase, 0.0) + seconds
        if phase == _LAST_PHASE:
            self.steps.append(self._step)
            self._step = {}
            if self._exposed_s is not None:
                self._waited.append(self._exposed_s())
        self._before = time.perf_counter()

    def end_step_group(self, counts: bool, num_drawn: int | None = None) -> None:
        """Divide the time that belongs to several steps, e.g. drawing their batches, among the steps of the group.

        Args:
            counts: whether these steps are kept.
            num_drawn: number of drawn batches; None: one per step.
        """
        steps = self.steps[self._first_of_group :]
        if counts:
            for step in steps:
                for phase, seconds in self.shared.items():
                    step[phase] = seconds / ((num_drawn or len(steps)) if phase in _DATA_PHASES else len(steps))
        else:
            del self.steps[self._first_of_group :]
            del self._waited[self._first_of_group :]
        self.shared = {}
        self._first_of_group = len(self.steps)

    def step_seconds(self) -> list[dict[str, float]]:
        """The seconds by phase of each step, with waiting for other ranks as a phase of its own."""
        if self._exposed_s is None:
            return self.steps
        return without_waiting(self.steps, self._waited, self._waits_in)


def without_waiting(
    steps: Sequence[dict[str, float]], waited_s: Sequence[float], waits_in: str
) -> list[dict[str, float]]:
    """Subtract the waiting for other ranks from its phase, and make it the phase `communication`.

    Args:
        steps: seconds by phase of each step.
        waited_s: DDP's report of the waiting, read after each step about the step before. The last step gets the last
            value.
        waits_in: the phase that contains the waiting.
    """
    result = []
    for step, seconds in zip(steps, [*waited_s[1:], *waited_s[-1:]], strict=True):
        wait_s = min(seconds, step[waits_in])
        result.append(step | {waits_in: step[waits_in] - wait_s, "communication": wait_s})
    return result


class PhaseClock:
    """Times the phases of a training, whose hooks call `enter` and `exit`.

    Phases may be nested: Lightning's optimizer step contains the forward pass. The time of inner phases is subtracted.
    Time outside of all phases is `rest`.

    Args:
        device: is synchronized at every boundary.

    Attributes:
        steps: seconds by phase, one entry per step.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.steps: list[dict[str, float]] = []
        self._open_phases: list[str] = []
        self._step: dict[str, float] = {}
        self._before = self._now()

    def _now(self) -> float:
        self.device.synchronize()
        return time.perf_counter()

    def enter(self, phase: str) -> None:
        """Start a phase."""
        self._mark_current()
        self._open_phases.append(phase)

    def exit(self, phase: str) -> None:
        """End a phase; ignored if it was not started."""
        if self._open_phases and self._open_phases[-1] == phase:
            self._mark_current()
            self._open_phases.pop()

    def mark(self, phase: str) -> None:
        """Assign the time since the last boundary to a phase."""
        now = self._now()
        self._step[phase] = self._step.get(phase, 0.0) + now - self._before
        self._before = now

    def _mark_current(self) -> None:
        self.mark(self._open_phases[-1] if self._open_phases else "rest")

    def pause(self) -> None:
        """Exclude the time until `resume` from the step."""
        self._mark_current()

    def resume(self) -> None:
        """End a pause."""
        self._before = self._now()

    def end_step(self) -> None:
        """End a step."""
        self._mark_current()
        self.steps.append(self._step)
        self._step = {}


def typical(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the seconds by phase of a typical step: the mean over the steps between the quartiles of step time.

    Medians of the phases would not add up to a step, and a mean over all steps would follow a few disturbed ones.

    Args:
        steps: seconds by phase of each step, with the same phases in each step.
    """
    totals = np.array([sum(step.values()) for step in steps])
    low, high = np.quantile(totals, [0.25, 0.75])
    kept = [step for step, total in zip(steps, totals, strict=True) if low <= total <= high]
    return {phase: statistics.fmean(step[phase] for step in kept) for phase in steps[0]}


def percentiles(totals: Sequence[float]) -> dict[str, float | None]:
    """Return p50, p95 and p99 of step times; None: too few steps."""
    return {f"step_p{q}_s": percentile(totals, q) for q in (50, 95, 99)}
