"""Small trainings of somebody else's, and what LapTimer wrote and said of them."""

import csv
import importlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.hooks.tiny import Tiny

from laptime.lap import clock as lap_clock


class Timed:
    """What was written and said of a run."""

    def __init__(self, folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.caplog = caplog
        self._capsys = capsys
        self._err = ""

    @property
    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        return record

    @property
    def rows(self) -> list[dict[str, str]]:
        with (self.folder / "epochs.csv").open() as file:
            return list(csv.DictReader(file))

    def column(self, name: str) -> list[Any]:
        """The values of a column of epochs.csv; None where there is none."""
        return [json.loads(row[name].lower()) if row[name] else None for row in self.rows]

    @property
    def warnings(self) -> list[str]:
        """What Laptime has warned of."""
        records = [each for each in self.caplog.records if each.name == "laptime" and each.levelno >= logging.WARNING]
        return [each.getMessage() for each in records]

    @property
    def lines(self) -> list[str]:
        """What Laptime has printed."""
        self._err += self._capsys.readouterr().err
        return [line.removeprefix("laptime: ") for line in self._err.splitlines() if line.startswith("laptime: ")]


@pytest.fixture
def timed(work_folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> Timed:
    return Timed(Path("run"), caplog, capsys)


@pytest.fixture
def lap_timer() -> Callable[..., Any]:
    """A LapTimer that writes to `run`; with a seed, and without the peak, which takes half a second."""
    from laptime import LapTimer

    def make(**settings: Any) -> Any:
        return LapTimer(**({"dir": "run", "seed": 1, "peak": False} | settings))

    return make


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """`now.s` is the time of laps, moved by the training: in the default time of Tiny's modules."""
    now = SimpleNamespace(s=1000.0)
    monkeypatch.setattr(lap_clock, "time", SimpleNamespace(perf_counter=lambda: now.s))
    return now


# Importing `lightning` takes four seconds; test_either_lightning.py does it in the default run.
@pytest.fixture(params=["pytorch_lightning", pytest.param("lightning.pytorch", marks=pytest.mark.soak)])
def tiny(request: pytest.FixtureRequest) -> Tiny:
    """Trainings with each of Lightning's two packages."""
    return Tiny(importlib.import_module(request.param))
