"""Reads the facts about a training that Laptime records from its Lightning Trainer."""

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from laptime.hooks.identity import HydraJob, optimizer_settings, plain, structure_of
from laptime.hooks.settings import Settings, Training, config_of, length_of
from laptime.hooks.warmup import is_compiled
from laptime.lap.recorder import Scores
from laptime.record.logged_score import LoggedScore, as_fraction

# Common names of logged metrics; the first one that exists is used.
_VAL_LOSS = ("val_loss", "val/loss", "valid_loss", "valid/loss", "validation_loss", "validation/loss")
_VAL_ACCURACY = ("val_accuracy", "val/accuracy", "val_acc", "val/acc", "valid_acc", "valid/acc", "validation/accuracy")
_TRAIN_ACCURACY = ("train_accuracy", "train/accuracy", "train_acc", "train/acc", "train_acc_epoch", "train/acc_epoch")
_TEST_LOSS = ("test_loss", "test/loss")
_TEST_ACCURACY = ("test_accuracy", "test/accuracy", "test_acc", "test/acc")
# Callbacks that don't affect the training, and counters in a scheduler's state.
_DISPLAY_CALLBACKS = (
    "LapTimer", "ModelCheckpoint", "TQDMProgressBar", "RichProgressBar", "ModelSummary", "RichModelSummary",
    "OnExceptionCheckpoint",
)  # fmt: skip
_STATE_COUNTERS = ("last_epoch", "num_bad_epochs", "best", "cooldown_counter")
# The tags of a lap's figures in the loggers, with the attribute of Epoch for each.
TAGS = {
    "time/lap_s": "epoch_time_s",
    "time/apart_s": "apart_s",
    "time/data_wait_s": "data_wait_s",
    "time/straggler_delay": "straggler_delay",
    "throughput/samples_per_s": "samples_per_s",
    "throughput/tokens_per_s": "tokens_per_s",
    "memory/rss_bytes": "rss_bytes",
    "memory/device_bytes": "device_memory_bytes",
    "cpu/percent": "cpu_percent",
}


def training_of(trainer: Any, module: Any, settings: Settings, job: HydraJob | None) -> Training:
    """Return what is known about the training when it starts.

    Args:
        job: the Hydra job that runs the training; None: there is none.
    """
    per_step = _batches_per_step(trainer, module)
    loaders = trainer.fit_loop._combined_loader
    flattened = [] if loaders is None else list(loaders.flattened)
    dataset = getattr(flattened[0], "dataset", None) if flattened else None
    data = trainer.datamodule if trainer.datamodule is not None else dataset
    return Training(
        model=settings.name or type(module).__name__.lower(),
        dataset=settings.dataset or type(data).__name__.lower(),
        num_parameters=_num_parameters(module),
        num_train=length_of(dataset),
        precision=str(trainer.precision),
        batches_per_step=per_step,
        num_batches=_num_batches(trainer, per_step),
        num_epochs=trainer.max_epochs if (trainer.max_epochs or -1) > 0 and trainer.max_steps < 0 else None,
        backend=dist.get_backend() if trainer.world_size > 1 and dist.is_initialized() else None,
        strategy=type(trainer.strategy).__name__,
        strategy_settings=_strategy_settings(trainer),
        config=config_of(settings, job, lambda: _detected_config(trainer, module, flattened)),
        seed=_seed(settings, job is not None and "seed" in (job.config or {}), job.seed if job is not None else None),
        classes=("__main__.script", _class_path(module)),
        num_loaders=max(1, len(flattened)),
        is_compiled=is_compiled(module),
        is_profiled=type(trainer.profiler).__name__ != "PassThroughProfiler",
        has_workers=any(getattr(loader, "num_workers", 0) for loader in flattened),
    )


def _detected_config(trainer: Any, module: Any, loaders: list[Any]) -> dict[str, Any]:
    """Return the hyperparameters, and the settings of optimizers, data and Trainer."""
    data = trainer.datamodule
    return {
        "model": {"_target_": _class_path(module), "structure": structure_of(module), **plain(dict(module.hparams))},
        "dataset": {
            "_target_": _class_path(data) if data is not None else "",
            "loaders": [_loader_settings(loader) for loader in loaders],
            **({} if data is None else plain(dict(data.hparams))),
        },
        "optimizer": {str(i): optimizer_settings(optimizer) for i, optimizer in enumerate(trainer.optimizers)},
        "scheduler": [
            {
                "_target_": type(config.scheduler).__name__,
                "interval": config.interval,
                **_scheduler_settings(config.scheduler),
            }
            for config in trainer.lr_scheduler_configs
        ],
        "trainer": {
            "max_epochs": trainer.max_epochs,
            "max_steps": trainer.max_steps,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "gradient_clip_val": trainer.gradient_clip_val,
            "gradient_clip_algorithm": plain(trainer.gradient_clip_algorithm),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "callbacks": sorted(name for name in map(_class_name, trainer.callbacks) if name not in _DISPLAY_CALLBACKS),
            "limit_train_batches": trainer.limit_train_batches,
        },
    }


def _class_name(instance: Any) -> str:
    return type(instance).__name__


def _class_path(instance: Any) -> str:
    """Return the full name of an object's class. A spawned process's script has the same name as in its parent."""
    return f"{type(instance).__module__.replace('__mp_main__', '__main__')}.{type(instance).__qualname__}"


def _loader_settings(loader: Any) -> dict[str, Any]:
    """Return the settings of a DataLoader that can change its batches or its speed."""
    dataset = getattr(loader, "dataset", None)
    names = ("batch_size", "drop_last", "num_workers", "persistent_workers", "prefetch_factor", "pin_memory")
    return {
        "dataset": _class_path(dataset),
        "num_train": length_of(dataset),
        "sampler": type(getattr(loader, "sampler", None)).__name__,
        **{name: plain(getattr(loader, name, None)) for name in names},
    }


def _scheduler_settings(scheduler: Any) -> dict[str, Any]:
    """Return the arguments of a scheduler, without the counters of its state."""
    state = plain(scheduler.state_dict())
    settings = {
        name: value for name, value in state.items() if not name.startswith("_") and name not in _STATE_COUNTERS
    }
    return {"_target_": type(scheduler).__name__, **settings}


def _strategy_settings(trainer: Any) -> dict[str, Any]:
    """Return the settings of DDP and synchronized BatchNorm; empty for one rank."""
    if trainer.world_size == 1:
        return {}
    settings = plain(getattr(trainer.strategy, "_ddp_kwargs", {}))
    return {**settings, "sync_batchnorm": getattr(trainer.strategy, "_layer_sync", None) is not None}


def _num_parameters(module: Any) -> int | None:
    """Return the number of parameters; None: some are lazy and have no size before the first batch."""
    try:
        return int(sum(parameter.numel() for parameter in module.parameters()))
    except (ValueError, RuntimeError):
        return None


def _batches_per_step(trainer: Any, module: Any) -> int | None:
    """Return the batches per optimizer step; None: manual optimization, or a schedule changes the number."""
    is_scheduled = "GradientAccumulationScheduler" in map(_class_name, trainer.callbacks)
    return trainer.accumulate_grad_batches if module.automatic_optimization and not is_scheduled else None


def _num_batches(trainer: Any, per_step: int | None) -> int | None:
    """Return the number of remaining batches of this rank; None: unknown."""
    per_epoch, limits = trainer.num_training_batches, []
    if (trainer.max_epochs or -1) > 0 and not math.isinf(per_epoch):
        limits.append((trainer.max_epochs - trainer.current_epoch) * int(per_epoch))
    if trainer.max_steps > 0 and per_step is not None:
        limits.append((trainer.max_steps - trainer.global_step) * per_step)
    return max(0, min(limits)) if limits else None


def _seed(settings: Settings, hydra_has_seed: bool, hydra_seed: int | None) -> int | None:
    """Return the user's seed=, else Hydra's, else that of `seed_everything`.

    If Hydra's configuration has `seed: null`, the environment variable of `seed_everything` is ignored, because an
    earlier job may have set it.
    """
    if settings.seed is not None or hydra_has_seed:
        return settings.seed if settings.seed is not None else hydra_seed
    text = os.environ.get("PL_GLOBAL_SEED", "")
    return int(text) if text.isdecimal() else None


def scores_of(trainer: Any, score: LoggedScore | None = None, has_validated: bool = True) -> Scores:
    """Return the metrics that the module has logged under one of the common names.

    Args:
        score: the score that the user has named; None: none.
        has_validated: whether there was a validation since the last lap. Otherwise validation metrics are outdated.
    """
    values = _values(trainer)
    optimizers = trainer.optimizers
    return Scores(
        train_score=None if score is None else score.value(values, "train"),
        val_score=score.value(values, "val") if score is not None and has_validated else None,
        train_accuracy=as_fraction(_first(values, _TRAIN_ACCURACY)),
        val_loss=_first(values, _VAL_LOSS) if has_validated else None,
        val_accuracy=as_fraction(_first(values, _VAL_ACCURACY)) if has_validated else None,
        lr=float(optimizers[0].param_groups[0]["lr"]) if optimizers else None,
    )


def test_scores_of(trainer: Any, score: LoggedScore | None) -> tuple[float | None, float | None, float | None]:
    """Return loss, accuracy and the score that the user has named, of `trainer.test`."""
    values = _values(trainer)
    value = None if score is None else score.value(values, "test")
    return _first(values, _TEST_LOSS), as_fraction(_first(values, _TEST_ACCURACY)), value


def num_samples_of(loaders: Any) -> int:
    """Return the number of samples of the Trainer's validation or test loaders; 0: unknown."""
    loaders = loaders if isinstance(loaders, list | tuple) else [loaders]
    return sum(length_of(getattr(loader, "dataset", None)) or 0 for loader in loaders)


def _values(trainer: Any) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1}


def _first(values: Mapping[str, float], names: tuple[str, ...]) -> float | None:
    value = next((values[name] for name in names if name in values), None)
    return value if value is not None and math.isfinite(value) else None


def stop_reason_of(trainer: Any) -> str:
    """Return why a training that did not fail ended: as planned (epochs), by early_stopping or by another callback."""
    if not trainer.should_stop or trainer.fit_loop.done is False:
        return "epochs"
    is_early = trainer.current_epoch < (trainer.max_epochs or 0) or 0 <= trainer.global_step < trainer.max_steps
    if any(_class_name(callback) == "EarlyStopping" and callback.stopped_epoch for callback in trainer.callbacks):
        return "early_stopping"
    return "callback" if is_early else "epochs"
