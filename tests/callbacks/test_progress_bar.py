"""The progress bar on a pseudo-terminal."""

import io
import re

import pytest
from rich.console import Console
from tests.support.settings import TINY

import laptime
from laptime.callbacks.progress_bar import ProgressBar

# 50 steps in each epoch.
SHORT = (
    *(override for override in TINY if not override.startswith("callbacks.progress_bar")),
    "dataset.num_train=2000",
    "training.epochs=2",
)


@pytest.fixture
def terminal(monkeypatch) -> io.StringIO:
    screen = io.StringIO()
    real = ProgressBar.__init__

    def on_a_terminal(self, refresh_s=0.5):
        real(self, refresh_s)
        self.console = Console(file=screen, force_terminal=True, width=120)

    monkeypatch.setattr(ProgressBar, "__init__", on_a_terminal)
    return screen


def test_bar_shows_epoch_loss_accuracy_rate_and_time_left(terminal):
    laptime.run([*SHORT, "callbacks.progress_bar.refresh_s=0.0001"])
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    figures = r"loss \d\.\d{4}  accuracy \d+\.\d\d%  "
    assert re.search(rf"epoch 2/2.* \d\d%\s+{figures}[\d,]+ samples/s  0:00 left", text)
    assert re.search(rf"epoch 2/2.*100%\s+{figures}validating", text)
    assert not re.search(r"100%[^\r]*left", text)


def test_bar_shows_laps_of_a_training_by_steps(terminal):
    by_steps = [override for override in SHORT if not override.startswith("training.epochs")]
    laps = ["training.max_steps=60", "training.lap_steps=30", "callbacks.progress_bar.refresh_s=0.0001"]
    laptime.run([*by_steps, *laps])
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert re.search(r"lap 2/2.*100%.*validating", text) and "epoch" not in text


def test_bar_is_redrawn_by_time_and_not_by_step(terminal):
    laptime.run([*SHORT, "callbacks.progress_bar.refresh_s=3600", "training.steps_per_execution=1"])
    # At the end of each epoch and when the bar is removed, not after each of the 50 steps.
    assert 2 <= len(re.findall(r"samples/s", terminal.getvalue())) <= 10


def test_no_bar_without_a_terminal(capfd):
    laptime.run([*SHORT])
    assert "\x1b" not in capfd.readouterr().err
