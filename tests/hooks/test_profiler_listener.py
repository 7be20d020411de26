"""The wrapper around a profiler: which events it reports, and how it is removed."""

from typing import Any

import pytest

from laptime.hooks.profiler_listener import ProfilerListener, phase_of

pytestmark = pytest.mark.unit


class Profiler:
    """Notes the actions that it is called with."""

    def __init__(self) -> None:
        self.actions: list[str] = []

    def start(self, action: str) -> None:
        self.actions.append(f"+{action}")

    def stop(self, action: str) -> None:
        self.actions.append(f"-{action}")


class Events:
    """Notes the events that the listener reports."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_on_"):
            raise AttributeError(name)
        return lambda *phase: self.calls.append(" ".join((name.removeprefix("_on_"), *phase)))


def profile(profiler: Profiler, *actions: str) -> None:
    """Start and stop actions, or only start (+) or stop (-) them."""
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


@pytest.mark.parametrize("enabled", [True, False])
def test_events_of_a_batch(enabled):
    profiler, events = Profiler(), Events()
    listener = ProfilerListener(profiler, events)
    listener.listen_to_phases(enabled)
    for _ in range(2):  # the event of an action is looked up once
        events.calls.clear()
        profile(profiler, *BATCH)
        phases = [call for call in events.calls if call.startswith("phase")]
        assert [call for call in events.calls if call not in phases] == [
            "batch_requested",
            "batch_ready",
            "batch_trained",
        ]
        assert phases == (
            [
                "phase_start data", "phase_end data", "phase_start host_to_device", "phase_end host_to_device",
                "phase_start optimizer", "phase_start forward", "phase_end forward", "phase_start backward",
                "phase_end backward", "phase_end optimizer",
            ] if enabled else []
        )  # fmt: skip


def test_epochs_and_checkpoints():
    profiler, events = Profiler(), Events()
    ProfilerListener(profiler, events)
    profile(profiler, "run_training_epoch", "save_checkpoint", "val_dataloader_next", "[Callback]X.on_train_end")
    assert events.calls == ["epoch_start", "pause_start", "pause_end"]


def test_profiler_is_called_as_before_and_restored_on_close():
    profiler, events = Profiler(), Events()
    listener = ProfilerListener(profiler, events)
    profile(profiler, *BATCH)
    listener.listen_to_phases(True)
    profile(profiler, *BATCH)
    listener.close()
    listener.close()
    assert sorted(vars(profiler)) == ["actions"]
    actions, calls = list(profiler.actions), len(events.calls)
    profiler.actions.clear()
    profile(profiler, *BATCH)
    assert actions == profiler.actions * 2 and len(events.calls) == calls


class PassThroughProfiler(Profiler):
    """Has the name of Lightning's profiler that does nothing."""


@pytest.mark.parametrize("kind", [Profiler, PassThroughProfiler])
def test_existing_listener_is_still_called(kind):
    profiler, events, actions = kind(), Events(), []
    profiler.start = profiler.stop = actions.append
    listener = ProfilerListener(profiler, events)
    profile(profiler, "run_training_epoch")
    listener.close()
    profile(profiler, "run_training_epoch")
    assert actions == ["run_training_epoch"] * 4 and events.calls == ["epoch_start"]


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
def test_phase_of_an_action(action, phase):
    assert phase_of(action) == phase
