"""Wraps the training steps of a transformers.Trainer, because its callbacks get neither batches nor errors."""

import functools
import weakref
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from laptime.hooks.guard import guarded
from laptime.hooks.model_hooks import ModelHooks
from laptime.hooks.process_exit import status_of
from laptime.hooks.timed_run import TimedRun
from laptime.lap.flops import FlopCounter
from laptime.lap.recorder import Scores
from laptime.record.masking import mask_text, secret_values
from laptime.record.schema import RunError

# Methods that the training loop calls directly: an exception in one of them ends the training.
_METHODS = ("get_batch_samples", "training_step")


class TrainerSteps:
    """Counts the samples, tokens and FLOPs of one training, and ends its run when a step fails.

    It holds no strong reference to the Trainer, the model or the callback.

    Args:
        run: the run of this training.
        trainer: the Trainer, whose methods are wrapped by instance attributes; None: it was not found.
        hooks: the hooks on the model, which are removed together with the wrappers; None: there are none.
        batch_size: samples per micro-batch on this rank.

    Attributes:
        is_open: whether the training is being timed.
    """

    def __init__(self, run: TimedRun, trainer: Any, hooks: ModelHooks | None, batch_size: int) -> None:
        self.run = run
        self.guard = run.guard
        self.is_open = True
        self._hooks = hooks
        self._batch_size = batch_size
        self._flops: FlopCounter | None = None
        self._has_rows = False
        self._samples: int | None = 0
        self._tokens: int | Tensor | None = 0
        self._trainer: Callable[[], Any] = _no_trainer
        if trainer is not None:
            self._trainer = weakref.ref(trainer)
            for name in _METHODS:
                if hasattr(trainer, name):
                    self._wrap_method(trainer, name)
        self.guard.on_give_up = self._give_up

    @property
    def counts(self) -> bool:
        """Whether batches can be counted."""
        return self._trainer() is not None

    # The Trainer's methods.

    def _wrap_method(self, trainer: Any, name: str) -> None:
        method = getattr(trainer, name)

        @functools.wraps(method)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not self.is_open:  # another wrapper around this one keeps calling it
                return method(*args, **kwargs)
            counter: Any = nullcontext()
            if name == "training_step":
                self._count(*args, **kwargs)
                counter = self._flops or counter
            try:
                with counter:
                    return method(*args, **kwargs)
            except BaseException as error:
                self.fail(error)
                raise

        wrapper.__dict__["laptime_steps"] = self
        wrapper.__dict__["replaced"] = vars(trainer).get(name)
        setattr(trainer, name, wrapper)

    def close(self) -> None:
        """Restore the Trainer and the model."""
        self.is_open, self._flops = False, None
        trainer = self._trainer()
        for name in _METHODS if trainer is not None else ():
            wrapper = vars(trainer).get(name)
            if wrapper is None or vars(wrapper).get("laptime_steps") is not self:
                continue
            if wrapper.replaced is None:
                delattr(trainer, name)
            else:
                setattr(trainer, name, wrapper.replaced)
        if self._hooks is not None:
            self._hooks.close()

    def _give_up(self, reason: str) -> None:
        self.close()
        self.run.abandon(reason)

    def fail(self, error: BaseException | None, message: str = "") -> None:
        """End the run after an error of the training.

        Args:
            message: the message to record if the error is unknown.
        """
        if not self.is_open:
            return
        self.close()
        if error is None:
            run_error = RunError(message=message)
        else:
            secrets = secret_values(self.run.training.config)
            run_error = RunError(type=type(error).__name__, message=mask_text(str(error), secrets))
        self.guard.attempt("the end of the run", lambda: self._end(error, run_error))

    def _end(self, error: BaseException | None, run_error: RunError) -> None:
        run = self.run
        run.drop_lap()
        run.ranks.announce_failure()
        if run.rank.world_size == 1:  # with several ranks, the others may still be in their step
            run.write_lap(Scores())
        run.end(status_of(error), run_error)

    # Batches.

    def begin_step(self) -> None:
        """Called before an optimizer step."""
        self._samples = self._tokens = 0
        self._flops = self.run.warmup.flop_counter() if self.run.is_warmup else None

    def end_step(self) -> tuple[int | None, Any]:
        """Called after an optimizer step. Return its samples and tokens on this rank; None: unknown."""
        if self._flops is not None:
            self.run.warmup.note_flops(self._flops, self._samples)
        return self._samples, self._tokens

    @guarded
    def _count(self, _model: Any, inputs: Any, *_: Any, **__: Any) -> None:
        """Count a micro-batch before it is trained on. Takes the arguments of `training_step`."""
        counter = self.run.counter
        if self.run.settings.samples is None and self._is_flattened(inputs):
            self.guard.mark_missing(
                "samples",
                "a batch without padding holds all texts in one row, so its samples can't be counted. Pass samples=, a "
                "function that returns the number of samples of a training step's inputs",
            )
        self._samples = _add_or_none(self._samples, self.guard.attempt("samples", lambda: counter.samples(inputs)))
        self._tokens = _add_or_none(self._tokens, self.guard.attempt("tokens", lambda: counter.tokens(inputs)))

    def _is_flattened(self, inputs: Any) -> bool:
        """Whether several texts are in one row, as DataCollatorWithFlattening returns them."""
        if not isinstance(inputs, Mapping):
            return False
        if any(str(name).startswith("cu_seq_lens") for name in inputs):
            return True
        ids = inputs.get("input_ids")
        if not isinstance(ids, Tensor) or ids.ndim != 2:
            return False
        self._has_rows = (
            self._has_rows or len(ids) > 1
        )  # if earlier batches had several rows, one row is a small last batch
        is_one_row = len(ids) == 1 and not self._has_rows and self._batch_size > 1
        return is_one_row and ("position_ids" in inputs or "seq_idx" in inputs)


def _no_trainer() -> None:
    """Replaces the weak reference if no Trainer was found."""


def _add_or_none(total: Any, count: Any) -> Any:
    return None if total is None or count is None else total + count
