"""LapTimer: a callback for any Trainer of `lightning` or `pytorch_lightning`."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from laptime.hooks.guard import Guard, guarded, log
from laptime.hooks.identity import hydra_job
from laptime.hooks.lightning_callback import LightningCallback, callback_classes
from laptime.hooks.lightning_facts import (
    TAGS,
    num_samples_of,
    scores_of,
    stop_reason_of,
    test_scores_of,
    training_of,
)
from laptime.hooks.profiler_listener import ProfilerListener
from laptime.hooks.settings import Settings, picklable
from laptime.hooks.timed_run import TimedRun
from laptime.hooks.warmup import is_compiled
from laptime.lap.recorder import scalars_of
from laptime.lap.timed_loader import TimedLoader
from laptime.machine.device import describe_torch
from laptime.measure.limit import bytes_moved
from laptime.ranks.rank import Rank
from laptime.record.schema import RunError


class LapTimer(LightningCallback):
    """Times the laps of a Trainer's training, and writes a run directory that `python -m laptime.analysis` compares.

    A lap runs from requesting the first batch to the device-synchronized end of the last optimizer step. Validation,
    sanity checks and checkpoints are excluded, even in the middle of an epoch. The work of other callbacks and of the
    loggers between two batches is included. LapTimer changes nothing in the training, and an error in it never fails
    the training.

    Args:
        every: batches per lap, for endless data and for trainings that count steps; None: a lap is an epoch.
        warmup_laps: number of first laps that are left out of all figures. The phases of a step are measured in them.
        samples, tokens: functions that return the number of samples or tokens of a batch; needed if its tensors don't
            show it.
        config: settings that distinguish this run from others; None: Hydra's composed configuration, else the
            hyperparameters of module and data module, and the settings of optimizer, data and Trainer.
        seed: the seed of the run; None: `seed` of Hydra's configuration, else that of `seed_everything`.
        name, dataset: names of model and data in reports; None: their class names.
        dir: the directory to write to; None: the output directory of Hydra's job, or laptime_runs/DATE/TIME.
        breakdown: whether to time the phases of some steps in the warm-up lap.
        flops: floating-point operations of a batch on one rank, forward and backward; True: count them in a step of
            the warm-up lap.
        peak: whether to measure this machine's fastest matrix product after the training.
        score: what the training is scored by: a dictionary with `metric` (the name of the logged validation values,
            e.g. val/bpc), `direction` (min or max) and optionally `name` and `unit` (`%`: the values are fractions).
            None: accuracy.

    Raises:
        ValueError: an argument is out of range.
    """

    tags: Mapping[str, str] = TAGS  # in the loggers

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
        super().__init__()
        if not callback_classes():
            import pytorch_lightning.callbacks  # noqa: F401 - a Callback class must be loaded
        self.settings = Settings(
            every=every, warmup_laps=warmup_laps, samples=samples, tokens=tokens, config=config, seed=seed, name=name,
            dataset=dataset, dir=None if dir is None else os.fspath(dir), breakdown=breakdown, flops=flops, peak=peak,
            score=score,
        )  # fmt: skip
        self._job = hydra_job()  # HydraConfig is not initialized in a spawned process
        self.guard = Guard()
        self.run: TimedRun | None = None
        self._trainer: Any = None
        self._watched_loop: Any = None
        self._progress: Any = None
        self._listener: ProfilerListener | None = None
        self._has_ended = False
        self._has_validated = False
        self._saw_batch_trained = False
        self._original_run: Any = None
        self._resumes_mid_epoch = False

    def __reduce__(self) -> tuple[Any, ...]:
        remade, (kind, attributes) = super().__reduce__()
        return remade, (kind, attributes | {"settings": picklable(self.settings, self.guard)})

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Pause the clock, so that the code in this context, e.g. an evaluation, is not part of the lap."""
        self._on_pause_start()
        try:
            yield
        finally:
            self._on_pause_end()

    # Start and end of the training.

    @guarded
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if self._trainer is not None:  # a nested training
            return
        timers = [callback for callback in trainer.callbacks if isinstance(callback, LapTimer)]
        if timers[:1] != [self]:
            self.guard.give_up("the Trainer has several LapTimers, and only the first one is used. Remove the others")
        elif self._has_ended:
            self.guard.give_up(
                "this LapTimer has already timed a training, so this one isn't timed. Create a new Trainer with a new "
                "LapTimer for each training"
            )

    @guarded
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self._trainer is not None:
            return
        if isinstance(trainer.train_dataloader, TimedLoader):
            self.guard.give_up("Laptime's own training is already timed. Remove the LapTimer")
            return
        self.run = run = self._start_run(trainer, pl_module)
        self._warn_about_settings(trainer, run)
        run.warmup.is_compiled = lambda: is_compiled(pl_module)
        run.warmup.on_begin = lambda: self._enable_phases(True)
        run.warmup.on_end = lambda: self._enable_phases(False)
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            run.warmup.ddp = trainer.strategy.model
        self._trainer = trainer
        loop = trainer.fit_loop.epoch_loop
        self._progress = loop.batch_progress
        if self.settings.every is not None:
            run.first_lap = (loop.total_batch_idx + 1) // self.settings.every
        # In a checkpoint from the end of an epoch, all batches are done.
        is_mid_epoch = 0 < loop.batch_progress.current.ready < trainer.num_training_batches
        self._resumes_mid_epoch = self.settings.every is None and is_mid_epoch
        self._listener = ProfilerListener(trainer.profiler, self)
        self._watch_validation(loop.val_loop)

    def _start_run(self, trainer: Any, pl_module: Any) -> TimedRun:
        device = describe_torch(trainer.strategy.root_device)
        rank = Rank(
            rank=trainer.global_rank, local_rank=trainer.local_rank, core_slot=trainer.local_rank,
            world_size=trainer.world_size, threads=torch.get_num_threads(), node=trainer.node_rank,
            num_nodes=trainer.num_nodes,
        )  # fmt: skip
        job = hydra_job() or self._job
        training = training_of(trainer, pl_module, self.settings, job)
        return TimedRun("LapTimer", self.settings, training, device, rank, self.guard, job)

    def _warn_about_settings(self, trainer: Any, run: TimedRun) -> None:
        if not run.rank.is_first:
            return
        if self.settings.every is None and math.isinf(trainer.num_training_batches):
            log.warning(
                "laptime: the DataLoader has no length, so an epoch may never end. Pass every=, the number of batches "
                "per lap, to LapTimer."
            )
        run.warn_if_every_is_too_large()
        if run.training.num_loaders > 1 and self.settings.samples is None:
            log.warning(
                "laptime: the samples of the %d DataLoaders are added up. Pass samples= to count differently.",
                run.training.num_loaders,
            )

    def _enable_phases(self, enabled: bool) -> None:
        if self._listener is not None:
            self._listener.listen_to_phases(enabled)

    def _watch_validation(self, loop: Any) -> None:
        """Pause the clock during validation. Wraps the loop's `run`, because Lightning works before its first hook."""
        run = loop.run
        self._original_run = vars(loop).get("run")

        def run_paused(*args: Any, **kwargs: Any) -> Any:
            self._has_validated = True
            with self.apart():
                return run(*args, **kwargs)

        loop.run = run_paused
        self._watched_loop = loop

    @guarded
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self.run is None or trainer is not self._trainer:
            return
        self._write_lap()
        self.run.measure_peak(sum(bytes_moved(optimizer) for optimizer in trainer.optimizers))
        self.run.note_memory()
        self.run.end("completed", reason=stop_reason_of(trainer))
        self._detach()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        if trainer is not self._trainer:
            return
        if self.run is not None and not self.guard.is_off:
            self.guard.attempt("run.json", lambda: self._fail(trainer, exception))
        self._detach()

    def _fail(self, trainer: Any, exception: BaseException) -> None:
        if self.run is not None:
            is_interrupt = isinstance(exception, KeyboardInterrupt) or "SIGTERM" in type(exception).__name__
            error = RunError(
                type=type(exception).__name__, message=_safe_str(exception), epoch=trainer.current_epoch,
                step=trainer.fit_loop.epoch_loop.batch_idx,
            )  # fmt: skip
            self.run.end("interrupted" if is_interrupt else "failed", error)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit" and trainer is self._trainer:
            self._detach()

    def _detach(self) -> None:
        """Restore the Trainer."""
        self._has_ended = self._has_ended or self.run is not None
        if self._listener is not None:
            self._listener.close()
            vars(self._watched_loop).pop("run", None)
            if self._original_run is not None:
                self._watched_loop.run = self._original_run
            self._listener = self._trainer = self._watched_loop = None

    @guarded
    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        if self.run is not None:
            scores = test_scores_of(trainer, self.settings.logged_score)
            self.run.note_test(*scores, num_samples_of(trainer.test_dataloaders))

    # Laps: events of the profiler listener, and hooks.

    @guarded
    def _on_epoch_start(self) -> None:
        run = self.run
        assert run is not None
        if not run.clock.is_running:
            self._write_lap()  # a lap of batches that ended with the previous epoch
            # The last epoch of stochastic weight averaging updates BatchNorm and has no backward pass.
            has_no_steps = getattr(self._trainer.fit_loop, "_skip_backward", False)
            run.start_lap(is_partial=self._resumes_mid_epoch or has_no_steps)
            self._resumes_mid_epoch = False
        else:  # a lap of batches continues
            run.resume()

    @guarded
    def _on_batch_requested(self) -> None:
        run = self.run
        assert run is not None
        if not run.clock.is_running:
            self._write_lap()
            run.start_lap()
        run.clock.begin_wait()
        if run.is_warmup:
            run.warmup.next_batch()

    @guarded
    def _on_batch_ready(self) -> None:
        assert self.run is not None
        self.run.clock.end_wait()

    @guarded
    def _on_batch_trained(self) -> None:
        run, is_last = self.run, self._progress.is_last_batch
        assert run is not None
        self._saw_batch_trained = True
        if run.lap_is_full or (is_last and self.settings.every is None):
            run.close_lap()
        elif is_last:  # the lap continues in the next epoch
            run.pause()

    @guarded
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.run is not None and trainer is self._trainer:
            self.run.batch_begins()

    @guarded
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        run = self.run
        if run is None or trainer is not self._trainer:
            return
        if not self._saw_batch_trained:  # the user's profiler skips this event, or the batch was skipped
            self._on_batch_trained()
        self._saw_batch_trained = False
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            loss = None
        else:
            loss = loss.detach() if loss.requires_grad else loss
            if (per_step := trainer.accumulate_grad_batches) != 1:  # Lightning has divided the loss by it
                loss = loss * per_step
        if batch is not None:
            run.batch_ends(batch, loss)
        if run.is_over:
            run.end_lap(trainer.current_epoch if self.settings.every is None else None)

    @guarded
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        run = self.run
        if run is None or self.settings.every is not None or trainer is not self._trainer:
            return
        if run.clock.is_running:
            run.drop_lap()
            log.warning(
                "laptime: epoch %d ended before its last batch and isn't counted. Pass every=, the number of batches "
                "per lap, to LapTimer.",
                trainer.current_epoch + 1,
            )
        self._write_lap()

    def _write_lap(self) -> None:
        """Write the lap that has ended, and log it with the Trainer's loggers. Called while no lap is timed."""
        trainer, run = self._trainer, self.run
        assert run is not None
        written = run.write_lap(scores_of(trainer, self.settings.logged_score, self._has_validated))
        self._has_validated = False
        if written is not None and trainer.loggers:
            run.guard.attempt("loggers", lambda: _log_lap(trainer, scalars_of(written[0], self.tags, written[1])))

    @guarded
    def _on_pause_start(self) -> None:
        if self.run is not None:
            self.run.pause()

    @guarded
    def _on_pause_end(self) -> None:
        if self.run is not None:
            self.run.resume()

    @guarded
    def _on_phase_start(self, phase: str) -> None:
        assert self.run is not None
        if self.run.warmup.phases is not None and self.run.is_timing:
            self.run.warmup.phases.enter(phase)

    @guarded
    def _on_phase_end(self, phase: str) -> None:
        assert self.run is not None
        if self.run.warmup.phases is not None and self.run.is_timing:
            self.run.warmup.phases.exit(phase)


def _log_lap(trainer: Any, scalars: Mapping[str, float]) -> None:
    for logger in trainer.loggers:
        metrics = {**scalars, "epoch": trainer.current_epoch}
        logger.log_metrics(metrics, step=max(0, trainer.global_step - 1))  # the step that Lightning's own metrics have
        logger.save()  # metrics that are only in memory are lost if the process dies


def _safe_str(exception: BaseException) -> str:
    try:
        return str(exception)
    except Exception:  # its __str__ raised
        return ""
