"""PhaseClock with a faked time."""

from functools import partial

import pytest

from laptime.lap import phases
from laptime.lap.phases import PhaseClock
from laptime.machine.device import Device

pytestmark = pytest.mark.unit


class Accelerator(Device):
    """Counts its synchronizations."""

    waits = 0

    def synchronize(self) -> None:
        Accelerator.waits += 1


class Steps:
    """A PhaseClock whose time is advanced by the test."""

    def __init__(self, now: list[float]) -> None:
        self.now = now
        self.clock = PhaseClock(Accelerator("cuda", "cuda", "made up", 1, None))

    def passing(self, seconds: float) -> PhaseClock:
        self.now[0] += seconds
        return self.clock


@pytest.fixture
def steps(monkeypatch) -> Steps:
    now = [0.0]
    monkeypatch.setattr(phases.time, "perf_counter", lambda: now[0])
    return Steps(now)


def test_time_of_inner_phases_is_subtracted(steps):
    steps.passing(1).enter("data")
    steps.passing(2).exit("data")
    steps.passing(4).enter("optimizer")  # Lightning's contains the closure
    steps.passing(8).enter("forward")
    steps.passing(16).exit("forward")
    steps.passing(32).enter("backward")
    steps.passing(64).exit("backward")
    steps.passing(128).exit("optimizer")
    steps.passing(256).end_step()
    assert steps.clock.steps == [
        {"rest": 1 + 4 + 256, "data": 2, "optimizer": 8 + 32 + 128, "forward": 16, "backward": 64}
    ]


def test_steps_add_up_and_hold_repeated_phases(steps):
    for _ in range(3):
        for phase in ("forward", "backward", "optimizer") * 2:  # a GAN's two optimizers
            steps.passing(0.5).enter(phase)
            steps.passing(1).exit(phase)
        steps.clock.end_step()
    assert steps.clock.steps == [{"rest": 3.0, "forward": 2.0, "backward": 2.0, "optimizer": 2.0}] * 3
    assert sum(sum(step.values()) for step in steps.clock.steps) == steps.now[0]


def test_pause_is_excluded_from_steps(steps):
    steps.passing(1).enter("data")
    steps.passing(2).pause()
    steps.passing(1000).resume()
    steps.passing(4).exit("data")
    steps.passing(0).end_step()
    assert steps.clock.steps == [{"rest": 1, "data": 6}]


def test_end_without_a_start_is_ignored(steps):
    steps.passing(1).exit("backward")
    steps.passing(1).enter("forward")
    steps.passing(2).exit("backward")
    steps.passing(2).exit("forward")
    steps.passing(1).exit("forward")
    steps.passing(1).end_step()
    assert steps.clock.steps == [{"rest": 4, "forward": 4}]


def test_mark_assigns_the_time_since_the_last_boundary(steps):
    steps.passing(1).mark("data")
    steps.passing(2).mark("forward")
    steps.passing(4).mark("backward")
    steps.passing(8).mark("forward")
    steps.passing(16).end_step()
    assert steps.clock.steps == [{"data": 1, "forward": 10, "backward": 4, "rest": 16}]


def test_the_device_is_idle_at_every_boundary(steps):
    Accelerator.waits = 0
    clock = steps.clock
    boundaries = [clock.pause, clock.resume, clock.end_step]
    boundaries += [partial(call, "forward") for call in (clock.enter, clock.exit, clock.mark)]
    clock.enter("forward")
    for boundary in boundaries:
        before = Accelerator.waits
        boundary()
        assert Accelerator.waits == before + 1
