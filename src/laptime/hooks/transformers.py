"""LapTimerCallback: a callback for Hugging Face's Trainer."""

import atexit
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist

from laptime.extras import require
from laptime.hooks.guard import Guard, guarded
from laptime.hooks.identity import hydra_job, plain
from laptime.hooks.loop import last_error, status_of
from laptime.hooks.model_hooks import ModelHooks
from laptime.hooks.ranks import MissingRanks, rank_of_process_group
from laptime.hooks.settings import Settings, Training
from laptime.hooks.timed_run import TimedRun
from laptime.lap.count import NumTokens, as_count, num_samples, num_tokens
from laptime.lap.recorder import Scores
from laptime.machine.device import ACCELERATORS, describe
from laptime.measure.limit import bytes_moved
from laptime.record.schema import RunError

require("transformers")

from transformers import TrainerCallback  # noqa: E402 - where it is missing, the line before says what to install

# Of TrainingArguments: what can change the result or its timing. The names of those that a version lacks do no harm.
_SETTINGS = (
    "adam_beta1", "adam_beta2", "adam_epsilon", "auto_find_batch_size", "average_tokens_across_devices", "bf16",
    "dataloader_drop_last", "dataloader_num_workers", "dataloader_persistent_workers", "dataloader_pin_memory",
    "dataloader_prefetch_factor", "fp16", "gradient_accumulation_steps", "gradient_checkpointing", "group_by_length",
    "label_smoothing_factor", "learning_rate", "lr_scheduler_kwargs", "lr_scheduler_type", "max_grad_norm", "max_steps",
    "neftune_noise_alpha", "num_train_epochs", "optim", "optim_args", "per_device_train_batch_size", "tf32",
    "torch_compile", "torch_compile_backend", "torch_compile_mode", "train_sampling_strategy", "use_liger_kernel",
    "warmup_ratio", "warmup_steps", "weight_decay",
)  # fmt: skip
# Of a model's configuration: names and places.
_NO_MODEL_SETTINGS = ("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype")
# Models that are being timed, so that a second callback leaves them alone.
_timed: set[int] = set()


class LapTimerCallback(TrainerCallback):
    """Times the laps of a `transformers.Trainer`, and writes a run directory for `python -m laptime.analysis`.

    A batch is all that an optimizer step takes, gradient accumulation included. A lap runs from asking for the first
    batch to the device-synchronized end of the last optimizer step, without evaluation and checkpoints. The Trainer
    shows its callbacks no batch: while it trains, a hook before the model's forward pass counts samples and tokens.

    Args:
        every: optimizer steps of a lap; None: a lap is an epoch.
        warmup_laps, samples, tokens, config, seed, name, dataset, dir, breakdown, flops, peak: as for LapTimer;
            `samples` and `tokens` are given the arguments of the model's forward pass, `flops` are of an optimizer
            step on one rank. config is by default the TrainingArguments and the model's configuration.

    Raises:
        ValueError: every or warmup_laps is too small.
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
    ) -> None:
        self.settings = Settings(
            every=every, warmup_laps=warmup_laps, samples=samples, tokens=tokens, config=config, seed=seed, name=name,
            dataset=dataset, dir=None if dir is None else os.fspath(dir), breakdown=breakdown, flops=flops, peak=peak,
        )  # fmt: skip
        self.guard = Guard()
        self.run: TimedRun | None = None
        self._model: torch.nn.Module | None = None
        self._optimizer: Any = None
        self._hooks: ModelHooks | None = None
        self._counting: Any = None
        self._samples: int | None = 0
        self._tokens: Any = 0
        self._metrics: dict[str, float] = {}
        self._left_of_epoch = 0
        self._ends_pause = ""

    # The training as a whole.

    @guarded
    def on_train_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        model, loader = known.get("model"), known.get("train_dataloader")
        if not isinstance(model, torch.nn.Module):
            self.guard.give_up("the Trainer shows no model")
        elif self.run is not None:
            self.guard.give_up(
                "this callback has timed a training, and the Trainer is used again: that isn't timed. Make a new "
                "Trainer with a new LapTimerCallback"
            )
        elif id(model) in _timed:
            self.guard.give_up("a Trainer needs one LapTimerCallback, and has several. Remove the others")
        else:
            self._begin(args, state, model, loader, known.get("optimizer"))

    def _begin(self, args: Any, state: Any, model: torch.nn.Module, loader: Any, optimizer: Any) -> None:
        kind = args.device.type if args.device.type in ACCELERATORS else "cpu"
        rank = rank_of_process_group()
        training = _training_of(args, state, model, loader, self.settings)
        device = describe("auto", kind, args.device.index or 0)
        try:
            run = TimedRun("transformers", self.settings, training, device, rank, self.guard)
        except MissingRanks as error:
            self.guard.give_up(str(error))
            return
        self.run, self._model, self._optimizer = run, model, optimizer
        _timed.add(id(model))
        atexit.register(self._at_exit)
        if args.torch_compile:  # a hook would be compiled with the model
            for part in ("breakdown", "timing.tokens_per_s"):
                self.guard.leave_out(part, "the model is compiled, and hooks would change it", warns=False)
        else:
            self._hooks = ModelHooks(model, run)
            self._counting = model.register_forward_pre_hook(self._count, with_kwargs=True)
        self._per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps
        self._num_in_epoch = -(-(training.num_train or 10**18) // rank.world_size)
        every, num_steps = self.settings.every, training.num_batches
        if every is not None and num_steps is not None and every > num_steps:
            self.guard.leave_out(
                "timing",
                f"every={every}: the training has {num_steps} steps, so no lap will be whole. Pass at most half",
            )
        if self.settings.every is not None:
            run.first_lap = state.global_step // self.settings.every

    @guarded
    def on_train_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        run = self.run
        if run is None:
            return
        if run.clock.is_running:
            run.drop_lap()
        run.write_lap(self._scores(known.get("lr_scheduler")))
        self._leave()
        run.measure_peak(0 if self._optimizer is None else _bytes_moved(self._optimizer))
        run.note_memory()
        is_early = state.max_steps > 0 and state.global_step < state.max_steps
        run.end("completed", reason="callback" if is_early else "epochs")

    def _at_exit(self) -> None:
        error = last_error()
        if self.run is not None and not self.guard.is_off:
            run, message = self.run, "the process ended within the training"
            told = RunError(type=type(error).__name__, message=str(error)) if error else RunError(message=message)
            self.guard.attempt("run.json", lambda: run.end(status_of(error), told))

    def _leave(self) -> None:
        """Leave the model as it was."""
        atexit.unregister(self._at_exit)
        _timed.discard(id(self._model))
        if self._counting is not None:
            self._counting.remove()
        if self._hooks is not None:
            self._hooks.close()

    # Laps.

    @guarded
    def on_epoch_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        run = self.run
        if run is None:
            return
        self._left_of_epoch = self._num_in_epoch
        if run.clock.is_running:
            run.resume()  # a lap of steps goes on
        else:
            self._start_lap(run, known, is_partial=self.settings.every is None and (state.epoch or 0) % 1 > 0)

    def _start_lap(self, run: TimedRun, known: Mapping[str, Any], is_partial: bool = False) -> None:
        run.write_lap(self._scores(known.get("lr_scheduler")))
        run.start_lap(is_partial)
        run.clock.wait()

    @guarded
    def on_step_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        run = self.run
        if run is None:
            return
        if self._ends_pause:  # what ends the pause did not come
            self._end_pause(self._ends_pause, known)
        if not run.clock.is_running:
            self._start_lap(run, known)
        run.clock.waited()
        if self._hooks is not None:
            self._hooks.mark("data")
        run.batch_begins()

    @guarded
    def on_substep_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        if self._hooks is not None:
            self._hooks.mark("rest")

    @guarded
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        if self._hooks is not None:
            self._hooks.mark("rest")

    @guarded
    def on_step_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        run = self.run
        if run is None:
            return
        ends_epoch = abs(state.epoch - round(state.epoch)) < 1e-9
        if run.lap_is_full or (self.settings.every is None and ends_epoch):
            run.close_lap()
        run.count(*self._counted())
        pause = "save" if control.should_save else "evaluate" if control.should_evaluate else ""
        if run.is_over:
            run.end_lap(round(state.epoch) - 1 if self.settings.every is None else None)
            if ends_epoch:
                return  # the next one begins the next lap
            self._ends_pause = pause or ("log" if control.should_log else "")
            if not self._ends_pause:
                self._start_lap(run, known)
            return
        if run.is_warmup:
            run.warmup.next_batch()
        run.clock.wait()
        if pause:
            self._ends_pause = pause
            run.pause()

    @guarded
    def on_epoch_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        run = self.run
        if run is None or not run.clock.is_running:
            return
        if self.settings.every is not None:
            run.pause()  # the lap goes on in the next epoch
        elif control.should_training_stop:
            run.drop_lap()
        else:  # of data whose length nobody knew
            run.close_lap()
            run.end_lap(round(state.epoch) - 1)

    @guarded
    def on_evaluate(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        metrics = known.get("metrics") or {}
        for name, key in (("val_loss", "eval_loss"), ("val_accuracy", "eval_accuracy")):
            if isinstance(metrics.get(key), int | float):
                self._metrics[name] = float(metrics[key])
        if control.should_save and self._ends_pause:
            self._ends_pause = "save"  # the best so far is saved next
        self._end_pause("evaluate", known)

    @guarded
    def on_save(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        self._end_pause("save", known)

    @guarded
    def on_log(self, args: Any, state: Any, control: Any, **known: Any) -> None:
        loss = (known.get("logs") or {}).get("loss")
        if isinstance(loss, int | float):
            self._metrics["train_loss"] = float(loss)
        if self.run is not None and self.run.is_timing:
            self.run.clock.wait()  # the next batch is asked for after it
        self._end_pause("log", known)

    def _end_pause(self, by: str, known: Mapping[str, Any]) -> None:
        run = self.run
        if run is None or self._ends_pause != by:
            return
        self._ends_pause = ""
        if not run.clock.is_running:  # a lap ended with the step before
            self._start_lap(run, known)
            return
        run.resume()
        if run.is_timing:
            run.clock.wait()

    # Samples and tokens.

    def _count(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if not module.training or self.guard.is_off:
            return
        batch = kwargs or args
        self._samples = _plus(self._samples, self.guard.attempt("samples", lambda: self._samples_of(batch)))
        self._tokens = _plus(self._tokens, self.guard.attempt("tokens", lambda: self._tokens_of(batch)))

    def _samples_of(self, batch: Any) -> int | None:
        own = self.settings.samples
        return num_samples(batch) if own is None else int(as_count(own(batch)))

    def _tokens_of(self, batch: Any) -> NumTokens:
        own = self.settings.tokens
        return num_tokens(batch) if own is None else as_count(own(batch))

    def _counted(self) -> tuple[int | None, Any]:
        if self._counting is None:
            samples = min(self._per_step, self._left_of_epoch)
            self._left_of_epoch -= samples
            return samples, None
        counted, self._samples, self._tokens = (self._samples, self._tokens), 0, 0
        return counted

    def _scores(self, scheduler: Any) -> Scores:
        lr = scheduler.get_last_lr()[0] if scheduler is not None else None
        scores, self._metrics = Scores(**self._metrics, lr=None if lr is None else float(lr)), {}
        return scores


def _plus(total: Any, more: Any) -> Any:
    return None if total is None or more is None else total + more


def _bytes_moved(optimizer: Any) -> int:
    return bytes_moved(getattr(optimizer, "optimizer", optimizer))  # accelerate wraps it


def _training_of(args: Any, state: Any, model: torch.nn.Module, loader: Any, settings: Settings) -> Training:
    job, distributed = hydra_job(), dist.is_available() and dist.is_initialized()
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    if settings.config is not None:
        config = plain(settings.config)
    elif job is not None and job.config is not None:
        config = job.settings
    else:
        values = args.to_dict()
        described: dict[str, Any] = getattr(getattr(model, "config", None), "to_diff_dict", dict)()
        config = {
            "training": plain({name: values[name] for name in _SETTINGS if name in values}),
            "model": plain({name: each for name, each in described.items() if name not in _NO_MODEL_SETTINGS})
            | {"num_parameters": num_parameters, "dtype": str(getattr(model, "dtype", None))},
        }
    whole = {torch.bfloat16: "bf16-true", torch.float16: "16-true", torch.float64: "64-true"}
    mixed = "bf16-mixed" if args.bf16 else "16-mixed" if args.fp16 else None
    data: Any = getattr(loader, "dataset", None)
    return Training(
        model=settings.name or type(model).__name__.lower(),
        dataset=settings.dataset or type(data).__name__.lower(),
        num_parameters=num_parameters,
        num_train=len(data) if hasattr(data, "__len__") else None,
        precision=mixed or whole.get(getattr(model, "dtype", None), "32-true"),  # type: ignore[arg-type]
        batches_per_step=1,  # a batch is all that an optimizer step takes
        num_batches=state.max_steps - state.global_step if state.max_steps > 0 else None,
        num_epochs=int(args.num_train_epochs) if args.max_steps <= 0 and args.num_train_epochs % 1 == 0 else None,
        backend=dist.get_backend() if distributed and dist.get_world_size() > 1 else None,
        strategy="ddp" if distributed else "single",
        config=config,
        seed=args.seed if settings.seed is None else settings.seed,
        classes=("__main__.script", f"{type(model).__module__}.Model"),
        has_workers=args.dataloader_num_workers > 0,
    )
