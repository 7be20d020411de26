"""The clock that takes steps apart, on made-up times."""

import pytest

from laptime.lap import phases
from laptime.lap.phases import StepClock, percentiles, typical
from laptime.machine.device import Device

pytestmark = pytest.mark.unit


class Accelerator(Device):
    """Counts how often it is waited for."""

    waits = 0

    def synchronize(self) -> None:
        Accelerator.waits += 1


@pytest.fixture
def now(monkeypatch):
    """A clock that stands still until it is set."""
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
    taken = clock()
    run(taken, now, [("data", 4.0), *STEP, *STEP, ("rest", 1.0)])
    taken.end_step_group(counts=True)
    step = {"forward": 2.0, "backward": 3.0, "optimizer": 1.0, "data": 2.0, "rest": 0.5}
    assert taken.step_seconds() == [step, step]


def test_unused_batches_take_only_their_fraction_of_drawing(now):
    taken = clock()
    run(taken, now, [("data", 4.0), *STEP, *STEP, ("rest", 1.0)])
    taken.end_step_group(counts=True, num_drawn=8)
    assert [(step["data"], step["rest"]) for step in taken.step_seconds()] == [(0.5, 0.5), (0.5, 0.5)]


def test_repeated_phases_add_up_to_one_step(now):
    taken = clock()
    run(taken, now, [("forward", 1.0), ("backward", 1.0), ("forward", 2.0), ("backward", 2.0), ("optimizer", 1.0)])
    taken.end_step_group(counts=True)
    assert taken.step_seconds() == [{"forward": 3.0, "backward": 3.0, "optimizer": 1.0}]


def test_step_that_does_not_count_is_dropped(now):
    taken = clock()
    run(taken, now, [("data", 9.0), *STEP])
    taken.end_step_group(counts=False)
    now[0] += 100.0
    taken.start()
    run(taken, now, [("data", 1.0), *STEP])
    taken.end_step_group(counts=True)
    assert taken.step_seconds() == [{"forward": 2.0, "backward": 3.0, "optimizer": 1.0, "data": 1.0}]


def test_waiting_for_gradients_is_subtracted_from_the_previous_backward_pass(now):
    answers = iter([0.0, 1.0, 2.0])  # each of the step before
    taken = clock(lambda: next(answers))
    run(taken, now, STEP * 3)
    taken.end_step_group(counts=True)
    assert [(step["backward"], step["communication"]) for step in taken.step_seconds()] == [(2, 1), (1, 2), (1, 2)]


def test_waiting_is_never_longer_than_the_backward_pass(now):
    taken = clock(lambda: 7.0)
    run(taken, now, STEP)
    taken.end_step_group(counts=True)
    assert (taken.step_seconds()[0]["backward"], taken.step_seconds()[0]["communication"]) == (0.0, 3.0)


def test_device_is_synchronized_at_every_boundary(now):
    taken = clock()
    before = Accelerator.waits
    run(taken, now, [("data", 1.0), *STEP])
    assert Accelerator.waits - before == 4


def test_typical_step_adds_up_and_leaves_disturbed_steps_out():
    steps = [{"forward": 1.0, "backward": 2.0 + number / 10} for number in range(8)] + [
        {"forward": 90.0, "backward": 1.0}
    ]
    found = typical(steps)  # of the nine, the five in the middle
    assert found == pytest.approx({"forward": 1.0, "backward": 2.4})


@pytest.mark.parametrize(("count", "known"), [(1, 1), (19, 1), (20, 2), (99, 2), (100, 3)])
def test_percentile_needs_enough_steps(count, known):
    found = percentiles([float(number) for number in range(count)])
    assert [value is not None for value in found.values()] == [True] * known + [False] * (3 - known)
    if known == 3:
        assert found == {"step_p50_s": 49.5, "step_p95_s": pytest.approx(94.05), "step_p99_s": pytest.approx(98.01)}
