"""StepClock with a faked time."""

import pytest

from laptime.lap import phases
from laptime.lap.phases import StepClock, percentiles, typical
from laptime.machine.device import Device

pytestmark = pytest.mark.unit


class Accelerator(Device):
    """Counts its synchronizations."""

    waits = 0

    def synchronize(self) -> None:
        Accelerator.waits += 1


@pytest.fixture
def now(monkeypatch):
    """A clock that only the test advances."""
    time = [0.0]
    monkeypatch.setattr(phases.time, "perf_counter", lambda: time[0])
    return time


def clock(exposed_s=None) -> StepClock:
    return StepClock(Accelerator("cuda", "cuda", "made up", 1, None), exposed_s)


def run(clock: StepClock, now: list[float], parts: list[tuple[str, float]]) -> None:
    for part, seconds in parts:
        now[0] += seconds
        clock.on_phase(part)


STEP = [("forward", 2.0), ("backward", 3.0), ("optimizer", 1.0)]


def test_shared_time_of_a_step_group_is_divided_among_its_steps(now):
    step_clock = clock()
    run(step_clock, now, [("data", 4.0), *STEP, *STEP, ("rest", 1.0)])
    step_clock.end_step_group(counts=True)
    step = {"forward": 2.0, "backward": 3.0, "optimizer": 1.0, "data": 2.0, "rest": 0.5}
    assert step_clock.step_seconds() == [step, step]


def test_unused_batches_take_only_their_fraction_of_drawing(now):
    step_clock = clock()
    run(step_clock, now, [("data", 4.0), *STEP, *STEP, ("rest", 1.0)])
    step_clock.end_step_group(counts=True, num_drawn=8)
    assert [(step["data"], step["rest"]) for step in step_clock.step_seconds()] == [(0.5, 0.5), (0.5, 0.5)]


def test_repeated_phases_add_up_to_one_step(now):
    step_clock = clock()
    run(step_clock, now, [("forward", 1.0), ("backward", 1.0), ("forward", 2.0), ("backward", 2.0), ("optimizer", 1.0)])
    step_clock.end_step_group(counts=True)
    assert step_clock.step_seconds() == [{"forward": 3.0, "backward": 3.0, "optimizer": 1.0}]


def test_step_that_does_not_count_is_dropped(now):
    step_clock = clock()
    run(step_clock, now, [("data", 9.0), *STEP])
    step_clock.end_step_group(counts=False)
    now[0] += 100.0
    step_clock.start()
    run(step_clock, now, [("data", 1.0), *STEP])
    step_clock.end_step_group(counts=True)
    assert step_clock.step_seconds() == [{"forward": 2.0, "backward": 3.0, "optimizer": 1.0, "data": 1.0}]


def test_waiting_for_gradients_is_subtracted_from_the_previous_backward_pass(now):
    answers = iter([0.0, 1.0, 2.0])  # each about the step before
    step_clock = clock(lambda: next(answers))
    run(step_clock, now, STEP * 3)
    step_clock.end_step_group(counts=True)
    assert [(step["backward"], step["communication"]) for step in step_clock.step_seconds()] == [(2, 1), (1, 2), (1, 2)]


def test_waiting_is_never_longer_than_the_backward_pass(now):
    step_clock = clock(lambda: 7.0)
    run(step_clock, now, STEP)
    step_clock.end_step_group(counts=True)
    assert (step_clock.step_seconds()[0]["backward"], step_clock.step_seconds()[0]["communication"]) == (0.0, 3.0)


def test_device_is_synchronized_at_every_boundary(now):
    step_clock = clock()
    before = Accelerator.waits
    run(step_clock, now, [("data", 1.0), *STEP])
    assert Accelerator.waits - before == 4


def test_typical_step_adds_up_and_leaves_disturbed_steps_out():
    steps = [{"forward": 1.0, "backward": 2.0 + number / 10} for number in range(8)] + [
        {"forward": 90.0, "backward": 1.0}
    ]
    step = typical(steps)  # the five in the middle of nine
    assert step == pytest.approx({"forward": 1.0, "backward": 2.4})


@pytest.mark.parametrize(("count", "num_known"), [(1, 1), (19, 1), (20, 2), (99, 2), (100, 3)])
def test_percentile_needs_enough_steps(count, num_known):
    result = percentiles([float(number) for number in range(count)])
    assert [value is not None for value in result.values()] == [True] * num_known + [False] * (3 - num_known)
    if num_known == 3:
        assert result == {"step_p50_s": 49.5, "step_p95_s": pytest.approx(94.05), "step_p99_s": pytest.approx(98.01)}
