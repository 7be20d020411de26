"""What Lightning tells its Trainer's profiler, heard: a Trainer names every phase of a step to it, profiler or not.

The names of the actions are no documented interface; a test holds them to each supported Lightning. The profiler, the
user's own perhaps, hears all as before.
"""

from collections.abc import Callable
from typing import Any, Protocol

_NEXT = "train_dataloader_next"
Tell = Callable[[], None]
_EPOCH, _BATCH, _CHECKPOINT = "run_training_epoch", "run_training_batch", "save_checkpoint"


class Hears(Protocol):
    """What is told of the training."""

    def _hear_epoch(self) -> None:
        """An epoch's first batch is about to be asked for."""

    def _hear_next(self) -> None:
        """A batch is asked for."""

    def _hear_next_done(self) -> None:
        """It is there."""

    def _hear_batch_done(self) -> None:
        """The last optimizer step of a batch has been given to the device."""

    def _hear_apart(self) -> None:
        """Something begins that is no training."""

    def _hear_apart_done(self) -> None:
        """It is over."""

    def _hear_phase(self, phase: str) -> None:
        """A phase of a step begins."""

    def _hear_phase_done(self, phase: str) -> None:
        """It ends."""


def phase_of(action: str) -> str | None:
    """The phase of a step that an action of Lightning's is; None: it is no boundary."""
    if action.endswith(_NEXT):
        return "data"
    if action.endswith(".batch_to_device"):
        return "host_to_device"
    if action.startswith("[Strategy]") and action.endswith(".training_step"):
        return "forward"
    # Of automatic optimization it holds the closure with forward and backward, which are taken out as inner phases.
    if action.endswith((".optimizer_step", ".optimizer_zero_grad")) or action == "optimizer_step":
        return "optimizer"
    return None


class ProfilerListener:
    """Listens to a profiler by two functions in front of its own `start` and `stop`.

    Some twenty actions begin and end in each step, so what an action means is looked up and not worked out.

    Args:
        profiler: of the Trainer.
        hears: is told.
    """

    def __init__(self, profiler: Any, hears: Hears) -> None:
        self.profiler = profiler
        self.hears = hears
        self._at_start: dict[str, Tell | None] = {}
        self._at_stop: dict[str, Tell | None] = {}
        self._start, self._stop = profiler.start, profiler.stop
        self._before = {name: vars(profiler)[name] for name in ("start", "stop") if name in vars(profiler)}
        self.hear_phases(False)

    def close(self) -> None:
        """Listen no more; the profiler is as it was."""
        for name in ("start", "stop"):
            vars(self.profiler).pop(name, None)
        vars(self.profiler).update(self._before)

    def hear_phases(self, wanted: bool) -> None:
        """Whether phases of steps are told of, too."""
        self.profiler.start = self._in_front_of(self._start, self._at_start, wanted, self._tell_phase_start)
        self.profiler.stop = self._in_front_of(self._stop, self._at_stop, wanted, self._tell_phase_stop)

    def _in_front_of(
        self, own: Callable[[str], None], table: dict[str, Tell | None], phases: bool, tell_phase: Callable[[str], None]
    ) -> Callable[[str], None]:
        look_up, learn = table.get, self._learn
        # Its own functions do nothing, where nobody else listens.
        is_silent = type(self.profiler).__name__ == "PassThroughProfiler" and not self._before

        def heard(action: str) -> None:
            tell = look_up(action, learn)
            if tell is learn:
                learn(action)
                tell = look_up(action)
            if tell is not None:
                tell()
            if phases:
                tell_phase(action)
            if not is_silent:
                own(action)

        return heard

    def _learn(self, action: str = "") -> None:
        """Note what an action means."""
        hears = self.hears
        start: Tell | None = None
        stop: Tell | None = None
        if action.endswith(_NEXT):
            start, stop = hears._hear_next, hears._hear_next_done
        elif action == _EPOCH:
            start = hears._hear_epoch
        elif action == _BATCH:
            stop = hears._hear_batch_done
        elif action == _CHECKPOINT:
            start, stop = hears._hear_apart, hears._hear_apart_done
        self._at_start[action], self._at_stop[action] = start, stop

    def _tell_phase_start(self, action: str) -> None:
        # Lightning names no backward pass of manual optimization, but these two hooks around it, in both kinds.
        if action.startswith("[LightningModule]") and action.endswith(".on_after_backward"):
            self.hears._hear_phase_done("backward")
        if (phase := phase_of(action)) is not None:
            self.hears._hear_phase(phase)

    def _tell_phase_stop(self, action: str) -> None:
        if (phase := phase_of(action)) is not None:
            self.hears._hear_phase_done(phase)
        if action.startswith("[LightningModule]") and action.endswith(".on_before_backward"):
            self.hears._hear_phase("backward")
