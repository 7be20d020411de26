"""Fixtures: small trainings, and the files, warnings and lines of the timer of a training."""

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
    """The files, warnings and printed lines of a run."""

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
        """The values of a column of epochs.csv; None for an empty cell."""
        return [json.loads(row[name].lower()) if row[name] else None for row in self.rows]

    @property
    def warnings(self) -> list[str]:
        """Laptime's warnings."""
        records = [r for r in self.caplog.records if r.name == "laptime" and r.levelno >= logging.WARNING]
        return [record.getMessage() for record in records]

    @property
    def lines(self) -> list[str]:
        """The lines that Laptime has printed."""
        self._err += self._capsys.readouterr().err
        return [line.removeprefix("laptime: ") for line in self._err.splitlines() if line.startswith("laptime: ")]


@pytest.fixture
def timed(work_folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> Timed:
    return Timed(Path("run"), caplog, capsys)


@pytest.fixture
def lap_timer() -> Callable[..., Any]:
    """Makes a LapTimer that writes to `run`, with a seed, and without the peak, which takes half a second."""
    from laptime import LapTimer

    def make(**settings: Any) -> Any:
        return LapTimer(**({"dir": "run", "seed": 1, "peak": False} | settings))

    return make


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The faked time of laps, `now.s`. The training advances it by the constants of tiny.py."""
    now = SimpleNamespace(s=1000.0)
    monkeypatch.setattr(lap_clock, "time", SimpleNamespace(perf_counter=lambda: now.s))
    return now


# Importing `lightning` takes four seconds. In the default run, only test_lightning_callback.py imports it.
@pytest.fixture(params=["pytorch_lightning", pytest.param("lightning.pytorch", marks=pytest.mark.soak)])
def tiny(request: pytest.FixtureRequest) -> Tiny:
    """Trainings with each of the two Lightning packages."""
    return Tiny(importlib.import_module(request.param))
