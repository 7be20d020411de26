"""A timer never makes a training fail."""

import logging

import pytest

from laptime.hooks.guard import Guard, guarded

pytestmark = pytest.mark.unit


class Timer:
    def __init__(self) -> None:
        self.guard = Guard()
        self.calls = 0

    @guarded
    def on_something(self, error: BaseException | None = None, times: int = 1) -> int:
        """A hook with a docstring."""
        self.calls += times
        if error is not None:
            raise error
        return 7


def test_failing_figure_is_skipped_with_one_warning(caplog):
    guard, calls = Guard(), []

    def fails() -> None:
        calls.append(1)
        raise ValueError("no\nsecond line")

    assert guard.attempt("peak", lambda: 3) == 3
    assert [guard.attempt("peak", fails) for _ in range(3)] == [None] * 3 and calls == [1]
    assert guard.attempt("other", lambda: 4) == 4 and not guard.is_off
    assert guard.missing == {"peak": "ValueError: no"}
    (warning,) = caplog.messages
    assert warning == "laptime: peak is skipped: ValueError: no. The training continues."


def test_first_reason_is_kept_and_may_be_silent(caplog):
    guard = Guard()
    guard.mark_missing("breakdown", "as the user wishes.", warn=False)
    guard.mark_missing("breakdown", "another")
    assert guard.missing == {"breakdown": "as the user wishes."} and caplog.messages == []


def test_failing_hook_turns_the_timer_off(caplog):
    timer = Timer()
    assert timer.on_something(times=2) is None
    timer.on_something(RuntimeError("first line\nsecond"))
    timer.on_something()
    timer.guard.give_up("again")
    assert timer.calls == 3 and timer.guard.is_off
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and record.name == "laptime"
    expected = (
        "laptime: can't time this training (RuntimeError: first line). The training continues without this timer."
    )
    assert record.getMessage() == expected
    assert Timer.on_something.__doc__ == "A hook with a docstring."


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_exceptions_that_end_the_process_propagate(error, caplog):
    timer = Timer()
    with pytest.raises(type(error)):
        timer.on_something(error)
    assert not timer.guard.is_off and caplog.messages == []
