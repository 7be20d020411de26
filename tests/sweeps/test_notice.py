"""The line about runs that take long to prepare."""

import itertools
from types import SimpleNamespace

import pytest

from laptime.sweeps import notice

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(("step_s", "num_lines"), [(0.001, 0), (1.0, 1), (10.0, 1)])
def test_many_runs_are_announced_once(step_s, num_lines, monkeypatch, capsys):
    ticks = (number * step_s for number in itertools.count())
    monkeypatch.setattr(notice, "time", SimpleNamespace(monotonic=ticks.__next__))
    assert list(notice.with_notice(range(1000), "checking")) == list(range(1000))
    assert capsys.readouterr().err == "checking 1,000 runs ...\n" * num_lines


def test_a_slow_first_run_is_not_announced(monkeypatch, capsys):
    monkeypatch.setattr(notice, "time", SimpleNamespace(monotonic=iter([100.0, 100.1]).__next__))
    assert list(notice.with_notice([1, 2, 3], "checking")) == [1, 2, 3]
    assert capsys.readouterr().err == ""
