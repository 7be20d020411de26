"""The listener in front of a profiler: whom it tells what, and how it leaves."""

from typing import Any

import pytest

from laptime.hooks.listener import ProfilerListener, phase_of

pytestmark = pytest.mark.unit


class Profiler:
    """Notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def start(self, action: str) -> None:
        self.heard.append(f"+{action}")

    def stop(self, action: str) -> None:
        self.heard.append(f"-{action}")


class Hears:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_hear_"):
            raise AttributeError(name)
        return lambda *phase: self.told.append(" ".join((name.removeprefix("_hear_"), *phase)))


def tell(profiler: Profiler, *actions: str) -> None:
    """Actions that begin and end, or do one of both (+, -)."""
    for action in actions:
        if not action.startswith("-"):
            profiler.start(action.removeprefix("+"))
        if not action.startswith("+"):
            profiler.stop(action.removeprefix("-"))


BATCH = (
    "[_TrainingEpochLoop].train_dataloader_next", "[Strategy]SingleDeviceStrategy.batch_to_device",
    "+run_training_batch", "+[LightningModule]Lit.optimizer_step", "[Strategy]SingleDeviceStrategy.training_step",
    "[LightningModule]Lit.on_before_backward", "+[Strategy]SingleDeviceStrategy.backward",
    "-[Strategy]SingleDeviceStrategy.backward", "[Callback]TQDM.on_after_backward",
    "[LightningModule]Lit.on_after_backward", "-[LightningModule]Lit.optimizer_step", "-run_training_batch",
)  # fmt: skip


@pytest.mark.parametrize("wanted", [True, False])
def test_what_is_told_of_a_batch(wanted):
    profiler, hears = Profiler(), Hears()
    listener = ProfilerListener(profiler, hears)
    listener.hear_phases(wanted)
    for _ in range(2):  # what an action means is learned once
        hears.told.clear()
        tell(profiler, *BATCH)
        phases = [each for each in hears.told if each.startswith("phase")]
        assert [each for each in hears.told if each not in phases] == [
            "next",
            "next_done",
            "batch_done",
        ]
        assert phases == (
            [
                "phase data", "phase_done data", "phase host_to_device", "phase_done host_to_device",
                "phase optimizer", "phase forward", "phase_done forward", "phase backward",
                "phase_done backward", "phase_done optimizer",
            ] if wanted else []
        )  # fmt: skip


def test_epochs_and_checkpoints():
    profiler, hears = Profiler(), Hears()
    ProfilerListener(profiler, hears)
    tell(profiler, "run_training_epoch", "save_checkpoint", "val_dataloader_next", "[Callback]X.on_train_end")
    assert hears.told == ["epoch", "apart", "apart_done"]


def test_the_profiler_hears_all_as_before_and_is_left_as_it_was():
    profiler, hears = Profiler(), Hears()
    listener = ProfilerListener(profiler, hears)
    tell(profiler, *BATCH)
    listener.hear_phases(True)
    tell(profiler, *BATCH)
    listener.close()
    listener.close()
    assert sorted(vars(profiler)) == ["heard"]
    heard, told = list(profiler.heard), len(hears.told)
    profiler.heard.clear()
    tell(profiler, *BATCH)
    assert heard == profiler.heard * 2 and len(hears.told) == told


class PassThroughProfiler(Profiler):
    """By its name, Lightning's that does nothing."""


@pytest.mark.parametrize("kind", [Profiler, PassThroughProfiler])
def test_who_listens_already_goes_on_listening(kind):
    profiler, hears, heard = kind(), Hears(), []
    profiler.start = profiler.stop = heard.append
    listener = ProfilerListener(profiler, hears)
    tell(profiler, "run_training_epoch")
    listener.close()
    tell(profiler, "run_training_epoch")
    assert heard == ["run_training_epoch"] * 4 and hears.told == ["epoch"]


@pytest.mark.parametrize(
    ("action", "phase"),
    [
        ("[_TrainingEpochLoop].train_dataloader_next", "data"),
        ("[Strategy]DDPStrategy.batch_to_device", "host_to_device"),
        ("[Strategy]DDPStrategy.training_step", "forward"),
        ("[LightningModule]Lit.optimizer_step", "optimizer"),
        ("[LightningModule]Lit.optimizer_zero_grad", "optimizer"),
        ("optimizer_step", "optimizer"),
        ("[Strategy]DDPStrategy.validation_step", None),
        ("[LightningModule]Lit.training_step", None),
        ("[Callback]X.on_before_optimizer_step", None),
        ("run_training_batch", None),
    ],
)
def test_the_phase_of_an_action(action, phase):
    assert phase_of(action) == phase
