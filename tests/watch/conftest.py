"""Fixtures for `laptime watch`: a made-up sweep, a faked clock, the command in this process."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.support.records import new_record, start_attempt, write_record

from laptime.record.plan import write_plan
from laptime.watch.__main__ import main


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def running(work_folder: Path) -> Path:
    """A made-up sweep of three runs; run 0 is recorded as running. Returns the directory of run 0."""
    run = work_folder / "sweep" / "0"
    run.mkdir(parents=True)
    (work_folder / "sweep" / "multirun.yaml").touch()
    record = new_record()
    record |= {"config": {"training": {"epochs": 5}}, "run_label": "seed=1"}
    start_attempt(record, 0)
    write_record(run, record)
    write_plan(work_folder / "sweep", {0: "seed=1", 1: "seed=2", 2: "seed=3"})
    return run


@pytest.fixture
def dies_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is dead after one second without a heartbeat instead of ten."""
    monkeypatch.setattr("laptime.watch.status.DEAD_AFTER_S", 1.0)


@pytest.fixture
def watch(capsys: pytest.CaptureFixture[str]) -> Callable[..., SimpleNamespace]:
    """Run `laptime watch ARGUMENTS` in this process."""

    def run(*arguments: str) -> SimpleNamespace:
        capsys.readouterr()
        code = main(arguments)
        captured = capsys.readouterr()
        return SimpleNamespace(returncode=code, stdout=captured.out, stderr=captured.err)

    return run
