"""LapTimerCallback: a callback for Hugging Face's Trainer."""

import os
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

from laptime.extras import require
from laptime.hooks.guard import Guard, guarded, log
from laptime.hooks.identity import hydra_job
from laptime.hooks.model_hooks import ModelHooks
from laptime.hooks.process_exit import last_error
from laptime.hooks.ranks import rank_of_process_group
from laptime.hooks.settings import Settings
from laptime.hooks.timed_run import TimedRun
from laptime.hooks.trainer_steps import TrainerSteps
from laptime.hooks.transformers_facts import batch_size_of, has_length, recomputes, trainer_of, training_of
from laptime.lap.recorder import Scores
from laptime.machine.device import describe_torch
from laptime.measure.limit import bytes_moved

require("transformers")

from transformers import TrainerCallback  # noqa: E402 - if it is missing, the line above says what to install

# Callbacks whose training is running.
_active: "weakref.WeakSet[LapTimerCallback]" = weakref.WeakSet()


class LapTimerCallback(TrainerCallback):
    """Times the laps of a `transformers.Trainer`, and writes a run directory for `python -m laptime.analysis`.

    A batch is the whole input of an optimizer step, gradient accumulation included. A lap runs from requesting the
    first batch to the device-synchronized end of the last optimizer step, without evaluation and checkpoints. Callbacks
    get no batches and no errors, so the Trainer's `training_step` and `get_batch_samples` are wrapped meanwhile.

    Args:
        every: optimizer steps per lap; None: a lap is an epoch.
        warmup_laps, samples, tokens, config, seed, name, dataset, dir, breakdown, flops, peak, score: the arguments of
            LapTimer. The metric of `score` has the Trainer's name, e.g. eval_bpc. `samples` and `tokens` get the inputs
            of a training step. `flops` is for an optimizer step on one rank. The default config is the
            TrainingArguments and the model's configuration.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        *,
        every: int | None = None,
        warmup_laps: int = 1,
        samples: Callable[[Any], int] | None = None,
        tokens: Callable[[Any], int] | None = None,
        config: Mapping[str, Any] | None = None,
        seed: int | None = None,
        name: str | None = None,
        dataset: str | None = None,
        dir: str | os.PathLike[str] | None = None,
        breakdown: bool = True,
        flops: bool | float = True,
        peak: bool = True,
        score: Mapping[str, str] | None = None,
    ) -> None:
        self.settings = Settings(
            every=every, warmup_laps=warmup_laps, samples=samples, tokens=tokens, config=config, seed=seed, name=name,
            dataset=dataset, dir=None if dir is None else os.fspath(dir), breakdown=breakdown, flops=flops, peak=peak,
            score=score,
        )  # fmt: skip
        self.guard = Guard()
        self.run: TimedRun | None = None
        self._steps: TrainerSteps | None = None
        self._hooks: ModelHooks | None = None
        self._optimizer: Any = None
        self._metrics: dict[str, float] = {}
        self._pause_reason = ""
        self._has_completed = False
        self._state: Any = None
        self._model: Callable[[], Any] = _no_model
        self._finalizer: Any = None

    @property
    def _active_run(self) -> TimedRun | None:
        """Return the run while its training is running; otherwise None."""
        return self.run if self._steps is not None and self._steps.is_open else None

    # Start and end of the training.

    @guarded
    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model, loader = kwargs.get("model"), kwargs.get("train_dataloader")
        if not isinstance(model, torch.nn.Module):
            self.guard.give_up("the Trainer passed no model to its callbacks")
        elif self._has_completed:
            self.guard.give_up(
                "this LapTimerCallback has already timed a training, so this one isn't timed. Create a new Trainer "
                "with a new LapTimerCallback for each training"
            )
        elif any(other is not self and other._state is state for other in _active):
            self.guard.give_up(
                "the Trainer has several LapTimerCallbacks, and only the first one is used. Remove the others"
            )
        else:
            for other in list(_active):
                if other is self or other._model() is model:  # an error ended its training unnoticed
                    other._fail("the training was restarted")
            self._begin(args, state, model, loader, kwargs.get("optimizer"))

    def _fail(self, message: str) -> None:
        _active.discard(self)
        if self._steps is not None:
            self._steps.fail(None, message)

    def _begin(self, args: Any, state: Any, model: torch.nn.Module, loader: Any, optimizer: Any) -> None:
        if self.run is not None:
            self.guard = Guard()
            self.run = self._steps = None
        rank, job, trainer = rank_of_process_group(), hydra_job(), trainer_of(state)
        training = training_of(args, state, model, loader, self.settings, job)
        device = describe_torch(args.device)
        batch_size = batch_size_of(args, state)
        run = TimedRun("transformers", self.settings, training, device, rank, self.guard, job)
        self.run, self._state = run, state
        self._model, self._optimizer = weakref.ref(model), optimizer
        self._metrics, self._pause_reason, self._hooks = {}, "", None
        if self.settings.flops is True and trainer is None:
            run.warmup.skip_flops("they are only counted with a transformers.Trainer")
        elif self.settings.flops is True and recomputes(args, model):
            run.warmup.skip_flops("gradient checkpointing recomputes activations, which would be counted")
        if trainer is None:
            reason = "batches can only be counted with a transformers.Trainer"
            self.guard.mark_missing("timing.tokens_per_s", reason, warn=False)
        if args.torch_compile:  # hooks would be compiled with the model
            self.guard.mark_missing("breakdown", "the model is compiled, and hooks would change it", warn=False)
        else:
            self._hooks = ModelHooks(model, run)
        self._steps = TrainerSteps(run, trainer, self._hooks, batch_size)
        self._finalizer = weakref.finalize(self, _on_abandoned, self._steps, os.getpid(), id(last_error()))
        _active.add(self)
        self._per_step = batch_size * args.gradient_accumulation_steps
        self._num_in_epoch = self._remaining_in_epoch = -(-(training.num_train or 10**18) // rank.world_size)
        self._plan_laps(args, state, run, loader)

    def _plan_laps(self, args: Any, state: Any, run: TimedRun, loader: Any) -> None:
        every, num_steps, epoch = self.settings.every, run.training.num_batches, state.epoch or 0
        self._has_length = has_length(loader)
        # If the data has no length, state.epoch doesn't count epochs. Then a resumed training starts at epoch 0.
        self._epoch = (int(epoch + 1e-9) if self._has_length else 0) - 1
        is_mid_epoch = epoch % 1 > 0 if self._has_length else True
        self._resumes_mid_epoch = state.global_step > 0 and is_mid_epoch and not args.ignore_data_skip
        if every is not None:
            run.first_lap = state.global_step // every
            if num_steps is not None and every > num_steps:
                self.guard.mark_missing(
                    "timing",
                    f"every={every}: the training has only {num_steps} steps, so no lap will be complete. Pass at most "
                    "half",
                )
        elif not self._has_length:
            log.warning(
                "laptime: the data has no length, so an epoch that max_steps cuts short isn't counted. Pass every=, "
                "the number of optimizer steps per lap."
            )

    @guarded
    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        run, steps = self._active_run, self._steps
        if run is None or steps is None:
            return
        if run.clock.is_running:
            run.drop_lap()
        run.write_lap(self._scores(kwargs.get("lr_scheduler")))
        self._has_completed = True
        _active.discard(self)
        self._finalizer.detach()
        steps.close()
        if not run.num_laps and not self._has_length and self.settings.every is None:
            self.guard.mark_missing("timing", "no epoch ended before max_steps. Pass every=", warn=False)
        run.measure_peak(0 if self._optimizer is None else _bytes_moved(self._optimizer))
        run.note_memory()
        is_early = state.max_steps > 0 and state.global_step < state.max_steps
        run.end("completed", reason="callback" if is_early else "epochs")
        self._optimizer = self._state = self._finalizer = None

    # Laps.

    @guarded
    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        run = self._active_run
        if run is None:
            return
        self._remaining_in_epoch = self._num_in_epoch
        self._epoch += 1
        is_partial, self._resumes_mid_epoch = self._resumes_mid_epoch, False
        if run.clock.is_running:
            run.resume()  # a lap of steps continues
        else:
            self._start_lap(run, kwargs, is_partial=self.settings.every is None and is_partial)

    def _start_lap(self, run: TimedRun, kwargs: Mapping[str, Any], is_partial: bool = False) -> None:
        run.write_lap(self._scores(kwargs.get("lr_scheduler")))
        run.start_lap(is_partial)
        run.clock.begin_wait()

    @guarded
    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        run = self._active_run
        if run is None:
            return
        if self._pause_reason:  # the event that ends the pause was not called
            self._resume_after(self._pause_reason, kwargs)
        if not run.clock.is_running:
            self._start_lap(run, kwargs)
        run.clock.end_wait()
        if self._hooks is not None:
            self._hooks.mark("data")
        if self._steps is not None:
            self._steps.begin_step()  # FLOPs are counted only inside training_step

    @guarded
    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._hooks is not None:
            self._hooks.mark("rest")

    @guarded
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._hooks is not None:
            self._hooks.mark("rest")

    @guarded
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        run = self._active_run
        if run is None:
            return
        ends_epoch = self._has_length and abs(state.epoch - round(state.epoch)) < 1e-9
        if run.lap_is_full or (self.settings.every is None and ends_epoch):
            run.close_lap()
        run.count(*self._step_counts())
        pause = "save" if control.should_save else "evaluate" if control.should_evaluate else ""
        if run.is_over:
            run.end_lap(self._epoch if self.settings.every is None else None)
            if ends_epoch:
                return  # on_epoch_begin starts the next lap
            self._pause_reason = pause or ("log" if control.should_log else "")
            if not self._pause_reason:
                self._start_lap(run, kwargs)
            return
        if run.is_warmup:
            run.warmup.next_batch()
        run.clock.begin_wait()
        if pause:
            self._pause_reason = pause
            run.pause()

    @guarded
    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        run = self._active_run
        if run is None or not run.clock.is_running:
            return
        if self.settings.every is not None:
            run.pause()  # the lap continues in the next epoch
        elif control.should_training_stop or not run.clock.num_batches:
            run.drop_lap()
        else:  # the data has no length
            run.close_lap()
            run.end_lap(self._epoch)

    @guarded
    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        metrics = kwargs.get("metrics") or {}
        for name, key in (("val_loss", "eval_loss"), ("val_accuracy", "eval_accuracy")):
            if isinstance(metrics.get(key), int | float):
                self._metrics[name] = float(metrics[key])
        self._note_score(metrics, "val")
        if control.should_save and self._pause_reason:
            self._pause_reason = "save"  # on_save follows
        self._resume_after("evaluate", kwargs)

    @guarded
    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._resume_after("save", kwargs)

    @guarded
    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs = kwargs.get("logs") or {}
        if isinstance(loss := logs.get("loss"), int | float):
            self._metrics["train_loss"] = float(loss)
        self._note_score(logs, "train")
        if (run := self._active_run) is not None and run.is_timing:
            run.clock.begin_wait()  # the next batch is requested after this
        self._resume_after("log", kwargs)

    def _note_score(self, metrics: Mapping[str, Any], stage: Literal["train", "val"]) -> None:
        if (logged := self.settings.logged_score) is not None:
            numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
            if (value := logged.value(numbers, stage)) is not None:
                self._metrics[f"{stage}_score"] = value

    def _resume_after(self, event: str, kwargs: Mapping[str, Any]) -> None:
        run = self._active_run
        if run is None or self._pause_reason != event:
            return
        self._pause_reason = ""
        if not run.clock.is_running:  # a lap ended with the previous step
            self._start_lap(run, kwargs)
            return
        run.resume()
        if run.is_timing:
            run.clock.begin_wait()

    # Samples, tokens and scores.

    def _step_counts(self) -> tuple[int | None, Any]:
        assert self._steps is not None
        counts = self._steps.end_step()
        if self._steps.counts:
            return counts
        samples = min(self._per_step, self._remaining_in_epoch)
        self._remaining_in_epoch -= samples
        return samples, None

    def _scores(self, scheduler: Any) -> Scores:
        lr = scheduler.get_last_lr()[0] if scheduler is not None else None
        scores, self._metrics = Scores(**self._metrics, lr=None if lr is None else float(lr)), {}
        return scores


def _bytes_moved(optimizer: Any) -> int:
    return bytes_moved(getattr(optimizer, "optimizer", optimizer))  # Accelerate wraps it


def _no_model() -> None:
    """Replaces the weak reference before a training."""


def _on_abandoned(steps: TrainerSteps, process: int, error_before: int) -> None:
    """Called if the callback is freed or the process ends during the training.

    Args:
        process: the id of the training process; its forks are ignored.
        error_before: the id of the last error when the training began, e.g. of an earlier notebook cell.
    """
    if os.getpid() != process:
        return
    error = last_error()
    steps.fail(
        None if error is None or id(error) == error_before else error,
        "the process ended during the training, or an error outside a training step ended it",
    )
