"""Times the laps of a plain loop: `for batch in laptime.laps(loader)`, or `timer.step(...)` without a loader."""

import atexit
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from laptime import suggest
from laptime.hooks.guard import Guard, guarded, log
from laptime.hooks.identity import hydra_job, structure_of
from laptime.hooks.model_hooks import ModelHooks
from laptime.hooks.process_exit import is_interactive, last_error, status_of
from laptime.hooks.ranks import rank_of_process_group
from laptime.hooks.settings import Settings, Training, config_of, length_of
from laptime.hooks.timed_run import TimedRun
from laptime.hooks.warmup import compiled_anything, is_compiled
from laptime.lap.recorder import Scores
from laptime.machine.device import available_accelerator, describe
from laptime.measure.limit import bytes_moved
from laptime.record.schema import RunError
from laptime.record.score import Stage

_SCORES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr")
_TEST_SCORES = ("test_loss", "test_accuracy")


def with_signature_of(target: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function that passes its arguments to `target`, so that help and completion show those of `target`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__signature__ = inspect.signature(target)  # type: ignore[attr-defined]
        return function

    return decorate


class Laps:
    """Times the laps of a plain training loop, and writes a run directory that `python -m laptime.analysis` compares.

    With a loader, iterate over it: a lap is a pass, or `every` batches. Without a loader, call `step` after each
    optimizer step. A lap runs from requesting the first batch to the end of the loop body of the last batch, with the
    device synchronized. Code in `apart()` is excluded. Use it as a context manager, or call `close` at the end. It
    closes itself when the process ends.

    Args:
        loader: yields the training batches; its attributes can be used through this object. None: call `step`.
        every: batches per lap; without a loader, optimizer steps per lap.
        warmup_laps: number of first laps that are left out of all figures.
        model: the module that the loop calls; needed for the phases of a step and the number of parameters.
        optimizer: the optimizer, from which the bytes that a step moves are computed; None: unknown.
        batches_per_step: batches per optimizer step (gradient accumulation).
        total: batches of the whole training, for the remaining time; None: unknown.
        precision: precision of matrix products in Lightning's notation: 32-true, bf16-mixed, bf16-true, 16-mixed.
        device: the device that trains: cpu, cuda, mps, xpu; None: the model's, else the available accelerator, else
            the CPU.
        samples, tokens, config, seed, name, dataset, dir, breakdown, flops, peak, score: the arguments of LapTimer. The
            values of the score are those that `note` gets under the name `metric` of `score`.

    Raises:
        ValueError: an argument is out of range, or there is neither a loader nor every.
    """

    def __init__(
        self,
        loader: Iterable[Any] | None = None,
        *,
        every: int | None = None,
        warmup_laps: int = 1,
        model: nn.Module | None = None,
        optimizer: Any = None,
        batches_per_step: int = 1,
        total: int | None = None,
        precision: str = "32-true",
        device: str | None = None,
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
        if loader is None and every is None:
            raise ValueError(
                "every=None: must be set without a loader. Pass every=, the number of optimizer steps per lap."
            )
        self.settings = Settings(
            every=every, warmup_laps=warmup_laps, samples=samples, tokens=tokens, config=config, seed=seed, name=name,
            dataset=dataset, dir=None if dir is None else os.fspath(dir), breakdown=breakdown and model is not None,
            flops=flops, peak=peak, score=score,
        )  # fmt: skip
        self.loader = loader
        self.model = model
        self.optimizer = optimizer
        self.batches_per_step = batches_per_step
        self.total = total
        self.precision = precision
        self.device = device
        self.guard = Guard()
        if breakdown and model is None:
            self.guard.mark_missing(
                "breakdown", "the phases of a step are timed with hooks on the model. Pass model=", False
            )
        self.run: TimedRun | None = None
        self._hooks: ModelHooks | None = None
        self._metrics: dict[str, float] = {}
        self._loss: Tensor | None = None
        self._is_closed = False
        self._error_before = last_error()  # in a notebook, the error of an earlier cell
        self._pass_was_cut_short = False

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or self.__dict__.get("loader") is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.loader, name)  # e.g. `sampler`

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        if self.loader is None:
            raise TypeError("Laps without a loader can't be iterated over. Call step() after each optimizer step.")
        self._on_pass_start()
        completed = False
        try:
            for batch in self.loader:
                self._on_batch_ready()
                yield batch  # the loop body runs here
                self._on_batch_trained(batch)
            completed = True
        finally:
            self._on_pass_end(completed)

    def step(self, samples: int | None = None, tokens: int | None = None, loss: Tensor | None = None) -> None:
        """Count an optimizer step, in a loop without a loader.

        The first call only starts the clock, because the start of its step is unknown.

        Args:
            samples, tokens: numbers of samples and tokens in this step, on this rank.
            loss: mean loss of the step, a scalar.
        """
        self._step(samples, tokens, loss)

    @guarded
    def _step(self, samples: int | None, tokens: int | None, loss: Tensor | None) -> None:
        if self._is_closed:
            self.guard.give_up(
                "this step isn't timed, because these Laps are closed. Create new Laps for each training"
            )
            return
        run = self._started()
        if not run.clock.is_running:
            run.start_lap()
        else:
            is_full = run.lap_is_full
            if is_full:
                run.close_lap()
            run.count(samples, tokens, None if loss is None else loss.detach())
            if is_full:
                self._end_lap(run)
                run.start_lap()
        if run.is_warmup:
            self._next_batch(run)
            run.batch_begins()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Pause the clock, so that the code in this context, e.g. an evaluation, is not part of the lap."""
        self._pause()
        try:
            yield
        finally:
            self._resume()

    def note(self, **metrics: float | Tensor) -> None:
        """Record metrics. None is ignored.

        train_loss, train_accuracy, val_loss, val_accuracy and lr belong to the current lap, and between two laps to the
        last one. test_loss and test_accuracy belong to the run. loss belongs to the current batch. With `score=`, its
        metric and those of the same name with train and test are accepted, too: val_bpc, train_bpc, test_bpc.
        """
        logged = self.settings.logged_score
        names = ("loss", *_SCORES, *_TEST_SCORES, *(() if logged is None else logged.all_names))
        for name, value in metrics.items():
            call = f"note({name}=...)"
            if name == "loss" and isinstance(value, Tensor) and value.numel() == 1:
                self._loss = value.detach()
            elif name not in names:
                self.guard.mark_missing(call, f"must be one of {', '.join(names)}")
            elif value is not None:
                number = self.guard.attempt(call, partial(float, value))
                if number is not None:
                    self._metrics[name] = number

    def close(self, error: BaseException | None = None) -> None:
        """End the run.

        Args:
            error: the exception that ended the training; None: it is complete.
        """
        if not self._is_closed:
            self._is_closed = True
            atexit.unregister(self._at_exit)
            self._close(error)

    def __enter__(self) -> "Laps":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(error)

    def _at_exit(self) -> None:
        error = last_error()
        if error is self._error_before or is_interactive():  # perhaps of another cell
            error = None
        if error is None and self.settings.every is None and self.run is not None and self.run.clock.is_running:
            error = SystemExit("the process ended during a pass")
        self.close(error)

    # Events of the loop.

    def _started(self) -> TimedRun:
        if self.run is None:
            self.run = self._start()
        return self.run

    def _start(self) -> TimedRun:
        job, rank = hydra_job(), rank_of_process_group()
        model, data = self.model, getattr(self.loader, "dataset", self.loader)
        config = config_of(self.settings, job, dict)
        if not config and self.settings.config is None and rank.is_first:
            log.warning(
                "laptime: runs of this loop can't be distinguished. Pass config=, a dictionary of the run's settings."
            )
        kind = self.device or (next((p.device.type for p in model.parameters()), None) if model is not None else None)
        device = describe("auto", kind or available_accelerator() or "cpu", rank.local_rank)
        seed = self.settings.seed if self.settings.seed is not None else None if job is None else job.seed
        network = model.module if isinstance(model, DistributedDataParallel) else model
        training = Training(
            model=self.settings.name or (type(network).__name__.lower() if network is not None else "loop"),
            dataset=self.settings.dataset or (type(data).__name__.lower() if data is not None else "data"),
            num_parameters=None if network is None else sum(parameter.numel() for parameter in network.parameters()),
            num_train=length_of(data),
            precision=self.precision,
            batches_per_step=self.batches_per_step,
            num_batches=self.total,
            num_epochs=None if not self.total or not (length := length_of(self.loader)) else -(-self.total // length),
            is_compiled=model is not None and is_compiled(model),
            backend=dist.get_backend() if rank.world_size > 1 else None,
            strategy="ddp" if rank.world_size > 1 else "single",
            config={"model": {"structure": structure_of(network)}, **config} if network is not None else config,
            seed=seed,
            classes=("__main__.script", *(() if network is None else (f"{type(network).__module__}.Network",))),
            has_workers=bool(getattr(self.loader, "num_workers", 0)),
        )
        run = TimedRun("laps", self.settings, training, device, rank, self.guard, job)
        run.warmup.is_compiled = (
            compiled_anything if model is None else lambda: is_compiled(model) or compiled_anything()
        )
        if isinstance(model, DistributedDataParallel):
            run.warmup.ddp = model
        if model is not None:
            self._hooks = ModelHooks(model, run)
        run.warn_if_every_is_too_large()
        atexit.register(self._at_exit)
        return run

    @guarded
    def _on_pass_start(self) -> None:
        if self._is_closed:
            self.guard.give_up(
                "this pass isn't timed, because these Laps are closed. Create new Laps for each training"
            )
            return
        run = self._started()
        self._warn_about_break()
        if run.clock.is_running:  # a lap of batches continues
            run.resume()
        else:
            run.write_lap(self._scores())
            run.start_lap()
        self._wait(run)

    def _warn_about_break(self) -> None:
        if self._pass_was_cut_short:
            self._pass_was_cut_short = False
            log.warning(
                "laptime: a pass ended before its last batch and isn't counted. Pass every=, the number of batches per "
                "lap."
            )

    def _next_batch(self, run: TimedRun) -> None:
        if self._hooks is not None:
            self._hooks.mark("rest")  # the backward pass, if no optimizer stepped after it
        run.warmup.next_batch()

    def _wait(self, run: TimedRun) -> None:
        if run.is_warmup:
            self._next_batch(run)
        run.clock.begin_wait()

    @guarded
    def _on_batch_ready(self) -> None:
        assert self.run is not None
        self.run.clock.end_wait()
        if self._hooks is not None:
            self._hooks.mark("data")
        self.run.batch_begins()

    @guarded
    def _on_batch_trained(self, batch: Any) -> None:
        run = self.run
        assert run is not None
        is_full = run.lap_is_full
        if is_full:
            run.close_lap()
        loss, self._loss = self._loss, None
        run.batch_ends(batch, loss)
        if is_full:
            self._end_lap(run)
            run.start_lap()
        self._wait(run)

    @guarded
    def _on_pass_end(self, completed: bool) -> None:
        run = self.run
        assert run is not None
        if self._is_closed:  # the generator is only freed now
            return
        if self.settings.every is not None:
            run.pause()  # the lap continues in the next pass
        elif completed:
            run.close_lap()
            run.end_lap()  # the user may still note() a validation
        else:
            run.drop_lap()
            self._pass_was_cut_short = True  # by `break` or by an exception: a generator can't see which

    def _end_lap(self, run: TimedRun) -> None:
        run.end_lap()
        run.write_lap(self._scores())

    def _scores(self) -> Scores:
        scores = {name: self._metrics.get(name) for name in _SCORES}
        scores |= {"train_score": self._score("train"), "val_score": self._score("val")}
        self._metrics = {name: value for name, value in self._metrics.items() if name.startswith("test")}
        return Scores(**scores)

    def _score(self, stage: Stage) -> float | None:
        logged = self.settings.logged_score
        return None if logged is None else logged.value(self._metrics, stage)

    @guarded
    def _pause(self) -> None:
        if self.run is not None:
            self.run.pause()

    @guarded
    def _resume(self) -> None:
        if self.run is not None:
            self.run.resume()

    @guarded
    def _close(self, error: BaseException | None) -> None:
        run = self.run
        if run is None:
            return
        run.drop_lap()
        run.write_lap(self._scores())
        if error is None or (isinstance(error, SystemExit) and not error.code):
            self._warn_about_break()
            run.measure_peak(0 if self.optimizer is None else bytes_moved(self.optimizer))
            run.note_memory()
            if self._metrics:
                loss, accuracy = (self._metrics.get(name) for name in _TEST_SCORES)
                run.note_test(loss, accuracy, self._score("test"))
            run.end("completed")
        else:
            run.end(status_of(error), RunError(type=type(error).__name__, message=str(error)))


@with_signature_of(Laps)
def laps(loader: Iterable[Any], **settings: Any) -> Laps:
    """Time a plain loop: iterate over `laptime.laps(loader, ...)` instead of the loader. Call it once, before the first
    epoch.

    Args:
        loader: yields the training batches.
        settings: further arguments for Laps.
    """
    names = inspect.signature(Laps).parameters
    for name in settings:
        if name not in names:
            hint = suggest.did_you_mean(name, names, 0.6) or f"Pass a setting of the run as config={{'{name}': ...}}."
            raise TypeError(f"laps() got an unexpected keyword argument {name!r}. {hint}")
    return Laps(loader, **settings)
