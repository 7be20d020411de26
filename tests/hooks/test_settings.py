"""The arguments of the timers."""

import pytest

from laptime.hooks.settings import Settings

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("settings", [{}, {"every": 1}, {"every": 10**9}, {"warmup_laps": 0}, {"warmup_laps": 3}])
def test_valid_settings_are_accepted(settings):
    made = Settings(**settings)
    assert {name: getattr(made, name) for name in settings} == settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, "every=0: must be at least 1 batch. Leave it out to time epochs."),
        ({"every": -3}, "every=-3: must be at least 1 batch. Leave it out to time epochs."),
        ({"warmup_laps": -1}, "warmup_laps=-1: must be at least 0."),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValueError) as error:
        Settings(**settings)
    assert str(error.value) == message


def test_all_timers_have_the_same_arguments():
    """They also have the same defaults. Some timers have additional arguments."""
    import inspect

    from laptime.hooks.lightning import LapTimer
    from laptime.hooks.loop import Laps

    shared = inspect.signature(Settings).parameters
    for timer in (LapTimer, Laps):
        parameters = inspect.signature(timer).parameters
        assert {name: parameters[name].default for name in shared} == {name: shared[name].default for name in shared}
