"""Turns the calls of a Trainer's profiler into events, because a Trainer reports every phase of a step to it.

The names of Lightning's profiler actions are not a documented interface, so a test checks them in each supported
version. The user's own profiler still gets every call.
"""

from collections.abc import Callable
from typing import Any, Protocol

_NEXT = "train_dataloader_next"
Handler = Callable[[], None]
_EPOCH, _BATCH, _CHECKPOINT = "run_training_epoch", "run_training_batch", "save_checkpoint"


class TrainingEvents(Protocol):
    """The callbacks that a ProfilerListener calls."""

    def _on_epoch_start(self) -> None:
        """Called before the first batch of an epoch is requested."""

    def _on_batch_requested(self) -> None:
        """Called before a batch is requested from the loader."""

    def _on_batch_ready(self) -> None:
        """Called when the loader has returned the batch."""

    def _on_batch_trained(self) -> None:
        """Called when the last optimizer step of a batch has been submitted to the device."""

    def _on_pause_start(self) -> None:
        """Called before work that is not training, such as saving a checkpoint."""

    def _on_pause_end(self) -> None:
        """Called after that work."""

    def _on_phase_start(self, phase: str) -> None:
        """Called before a phase of a step."""

    def _on_phase_end(self, phase: str) -> None:
        """Called after a phase of a step."""


def phase_of(action: str) -> str | None:
    """Return the phase of a step that a profiler action measures; None: the action is not a phase."""
    if action.endswith(_NEXT):
        return "data"
    if action.endswith(".batch_to_device"):
        return "host_to_device"
    if action.startswith("[Strategy]") and action.endswith(".training_step"):
        return "forward"
    # In automatic optimization this action contains forward and backward, which are subtracted as inner phases.
    if action.endswith((".optimizer_step", ".optimizer_zero_grad")) or action == "optimizer_step":
        return "optimizer"
    return None


class ProfilerListener:
    """Wraps a profiler's `start` and `stop`, and calls the matching events.

    About twenty actions start and stop in each step, so the event of an action is looked up in a table.

    Args:
        profiler: the Trainer's profiler.
        events: the object whose event methods are called.
    """

    def __init__(self, profiler: Any, events: TrainingEvents) -> None:
        self.profiler = profiler
        self.events = events
        self._at_start: dict[str, Handler | None] = {}
        self._at_stop: dict[str, Handler | None] = {}
        self._start, self._stop = profiler.start, profiler.stop
        self._replaced = {name: vars(profiler)[name] for name in ("start", "stop") if name in vars(profiler)}
        self.listen_to_phases(False)

    def close(self) -> None:
        """Restore the profiler."""
        for name in ("start", "stop"):
            vars(self.profiler).pop(name, None)
        vars(self.profiler).update(self._replaced)

    def listen_to_phases(self, enabled: bool) -> None:
        """Turn the phase events on or off."""
        self.profiler.start = self._wrap(self._start, self._at_start, self._on_start if enabled else None)
        self.profiler.stop = self._wrap(self._stop, self._at_stop, self._on_stop if enabled else None)

    def _wrap(
        self,
        profile: Callable[[str], None],
        handlers: dict[str, Handler | None],
        on_action: Callable[[str], None] | None,
    ) -> Callable[[str], None]:
        look_up, learn = handlers.get, self._learn
        # Calling a PassThroughProfiler has no effect, unless somebody has wrapped it as well.
        is_no_op = type(self.profiler).__name__ == "PassThroughProfiler" and not self._replaced

        def wrapper(action: str) -> None:
            handler = look_up(action, learn)
            if handler is learn:
                learn(action)
                handler = look_up(action)
            if handler is not None:
                handler()
            if on_action is not None:
                on_action(action)
            if not is_no_op:
                profile(action)

        return wrapper

    def _learn(self, action: str = "") -> None:
        """Add an action to the two tables."""
        events = self.events
        start: Handler | None = None
        stop: Handler | None = None
        if action.endswith(_NEXT):
            start, stop = events._on_batch_requested, events._on_batch_ready
        elif action == _EPOCH:
            start = events._on_epoch_start
        elif action == _BATCH:
            stop = events._on_batch_trained
        elif action == _CHECKPOINT:
            start, stop = events._on_pause_start, events._on_pause_end
        self._at_start[action], self._at_stop[action] = start, stop

    def _on_start(self, action: str) -> None:
        # Lightning has no action for a manual backward pass, but calls these two hooks around every backward pass.
        if action.startswith("[LightningModule]") and action.endswith(".on_after_backward"):
            self.events._on_phase_end("backward")
        if (phase := phase_of(action)) is not None:
            self.events._on_phase_start(phase)

    def _on_stop(self, action: str) -> None:
        if (phase := phase_of(action)) is not None:
            self.events._on_phase_end(phase)
        if action.startswith("[LightningModule]") and action.endswith(".on_before_backward"):
            self.events._on_phase_start("backward")
