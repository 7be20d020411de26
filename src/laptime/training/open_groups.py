"""What the open groups of the configuration must name, and what Laptime can't use: refused, for it would be ignored.

A class is looked at before anything is written; what a function returns, when it is built.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.profilers import Profiler
from torch import nn
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from laptime.config import targets
from laptime.config.schema import Config
from laptime.data.image_data import ImageData
from laptime.errors import UserError
from laptime.schedulers.step_schedule import StepSchedule

KINDS: dict[str, type] = {
    "dataset": ImageData,
    "model": nn.Module,
    "optimizer": torch.optim.Optimizer,
    "scheduler": LRScheduler,
    "profiler": Profiler,
    "callbacks": Callback,
    "logger": Logger,
}

# What Laptime passes to the constructors besides their own keys.
INJECTED_ARGUMENTS = {
    "model": frozenset({"input_shape", "num_classes"}),
    "optimizer": frozenset({"params"}),
    "scheduler": frozenset({"optimizer", "num_steps_per_epoch"}),
}

# Callbacks of Lightning's that do what is Laptime's own to do, and what to use instead.
REPLACED_CALLBACKS = {
    pl.callbacks.GradientAccumulationScheduler: "training.num_microbatches",
    pl.callbacks.StochasticWeightAveraging: "training.swa_start_epoch",
    pl.callbacks.BatchSizeFinder: "python -m laptime.tune batch_size",
    pl.callbacks.LearningRateFinder: "python -m laptime.tune lr",
    pl.callbacks.ProgressBar: "callbacks.progress_bar",
}

# Schedulers of torch's that are to be stepped after every batch, and what to use instead.
PER_STEP_SCHEDULERS = {
    OneCycleLR: "Use scheduler=one_cycle.",
    CyclicLR: "Use scheduler=one_cycle, or derive a schedule from laptime.schedulers.step_schedule.StepSchedule.",
}

# Where better values of what a run's own validation measures lie.
METRIC_MODES = {"val_loss": "min", "val_accuracy": "max"}


def check_open_groups(config: Config) -> None:
    """Check keys, types and classes of the open groups against the constructors they name, without making anything.

    Raises:
        UserError: names the key, the value and the rule.
    """
    for key, node in _nodes(config):
        group = key.partition(".")[0]
        if group == "model":
            _refuse_library(node, targets.locate(key, node))
        for inner, inner_node, part in targets.targets_in(key, node):
            _refuse_part(group, inner, inner_node, part)
        target = targets.check(key, node, INJECTED_ARGUMENTS.get(group, frozenset()), KINDS[group])
        if group == "callbacks":
            _refuse_what_is_done_here(key, node, target)
        _check_watched(key, node, target, _argument(node, target, "monitor"), _argument(node, target, "mode"), config)


def build(config: Config, key: str, **given: Any) -> Any:
    """Make what a group, or one entry of callbacks and logger, describes: see `build_node`.

    Args:
        key: like model, or callbacks.checkpoint.
    """
    node = dict(entries(config, key.partition(".")[0]))[key]
    made = build_node(key, node, **given)
    for part in _parts(made):
        monitor, mode = (getattr(part, attribute, None) for attribute in ("monitor", "mode"))
        _check_watched(key, node, type(part), monitor, mode, config)
    return made


def build_node(key: str, node: Mapping[str, Any], **given: Any) -> Any:
    """Make what a mapping with a `_target_` describes.

    Args:
        key: where it stands in the configuration: its first part is the group.
        given: what Laptime passes besides its own keys; what the target does not take is left out.

    Raises:
        UserError: the arguments don't fit, or it is nothing that Laptime can use.
    """
    group = key.partition(".")[0]
    made = targets.build(key, node, KINDS[group], **given)
    for part in _parts(made):
        _refuse_part(group, key, node, type(part))
        if isinstance(part, StepSchedule) and part is not made:
            raise UserError(
                f"{key}._target_={node['_target_']}: {type(part).__name__} moves the learning rate at every optimizer "
                f"step, and {type(made).__name__} is stepped once an epoch. Name {type(part).__name__} alone."
            )
    return made


def entries(config: Config, group: str) -> list[tuple[str, dict[str, Any]]]:
    """Each object that a group describes, by its full key: several of callbacks and logger, without those that are
    null; of scheduler and profiler none where none is chosen."""
    nodes = config.open_group(group)
    if group in ("callbacks", "logger"):
        return [(f"{group}.{name}", node) for name, node in nodes.items() if node is not None]
    return [(group, nodes)] if nodes.get("_target_") is not None or group not in ("scheduler", "profiler") else []


def _nodes(config: Config) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each object that Laptime makes: its key, and what describes it."""
    for group in KINDS:
        found = entries(config, group)
        if not found and group in ("scheduler", "profiler"):
            for key, value in config.open_group(group).items():
                if key != "_target_":
                    raise UserError(f"{group}.{key}={value}: has no effect without a {group}. Choose one: {group}=...")
        for key, node in found:
            if not isinstance(node, Mapping):
                raise UserError(f"{key}={node}: must be a mapping with a _target_, or null.")
            yield key, node


def _parts(made: Any) -> Iterator[Any]:
    """An object, and what it consists of as far as that matters here: layers, and schedulers of schedulers."""
    if isinstance(made, nn.Module):
        yield from made.modules()
        return
    yield made
    if isinstance(made, LRScheduler):
        for part in getattr(made, "_schedulers", ()):
            yield from _parts(part)


def _refuse_library(node: Mapping[str, Any], target: Any) -> None:
    """Refuse functions of libraries whose networks Laptime fits to the data by their name."""
    library = str(getattr(target, "__module__", "")).partition(".")[0]
    if library in ("torchvision", "timm") and not isinstance(target, type):
        name = target.__name__
        if name in ("get_model", "create_model"):
            name = node.get("name") or node.get("model_name") or "NAME"
        raise UserError(
            f"model._target_={node['_target_']}: {library}'s networks are chosen by name, and fitted to the images and "
            f"classes. Use model={library} model.name={name}."
        )


def _refuse_part(group: str, key: str, node: Mapping[str, Any], made: Any) -> None:
    """Refuse a class whose objects would not be used as they are meant to be; a function passes."""
    where = f"{key}._target_={node['_target_']}"
    if not isinstance(made, type):
        return
    if group == "model" and is_lightning_module(made):
        raise UserError(
            f"{where}: {made.__name__} is a LightningModule, whose training_step and optimizer Laptime would not use: "
            "it has its own. Name the network alone, an nn.Module from images to logits."
        )
    for kind, instead in PER_STEP_SCHEDULERS.items() if group == "scheduler" else ():
        if issubclass(made, kind):
            raise UserError(
                f"{where}: {kind.__name__} moves the learning rate at every optimizer step, and Laptime steps torch's "
                f"schedulers once an epoch. {instead}"
            )


def is_lightning_module(made: type) -> bool:
    """Whether a class is a LightningModule, of whichever of Lightning's two packages."""
    return any(
        base.__name__ == "LightningModule" and base.__module__.partition(".")[0] in ("lightning", "pytorch_lightning")
        for base in made.__mro__
    )


def _refuse_what_is_done_here(key: str, node: Mapping[str, Any], target: Any) -> None:
    if isinstance(target, type) and issubclass(target, pl.callbacks.BackboneFinetuning):
        raise UserError(
            f"{key}={node['_target_']}: it freezes module.backbone, which is not there: the network is module.network. "
            "Write a BaseFinetuning of your own, which freezes what you choose of that."
        )
    for kind, instead in REPLACED_CALLBACKS.items():
        if isinstance(target, type) and issubclass(target, kind):
            raise UserError(f"{key}={node['_target_']}: what it does is Laptime's own to do. Use {instead}.")


def _argument(node: Mapping[str, Any], target: Any, name: str) -> Any:
    """What an argument will be, its default included; None where that can't be told."""
    if name in node:
        return node[name]
    try:
        parameter = inspect.signature(target).parameters.get(name)
    except (TypeError, ValueError):
        return None
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def _check_watched(key: str, node: Mapping[str, Any], made: Any, monitor: Any, mode: Any, config: Config) -> None:
    """Check that what watches a metric of Laptime's finds it, and takes it to improve in the right direction.

    Args:
        made: the class or function that is named, or the class of what was made.
        monitor, mode: its arguments or attributes; None: it has none, or they can't be told.
    """
    is_plateau = isinstance(made, type) and issubclass(made, ReduceLROnPlateau)
    metric = "val_loss" if is_plateau else monitor  # the Classifier's choice
    if metric not in METRIC_MODES or not (is_plateau or key.startswith("callbacks.")):
        return
    if not config.has_validation:
        does = "waits for a plateau of" if is_plateau else "watches"
        raise UserError(
            f"{key}={node['_target_']}: {does} {metric}, and dataset.val_fraction=0 leaves no validation set. "
            "Set dataset.val_fraction=0.2, or leave it out."
        )
    if mode in ("min", "max") and mode != METRIC_MODES[metric]:
        which = {"min": "lower", "max": "higher"}[METRIC_MODES[metric]]
        raise UserError(f"{key}.mode={mode}: {which} is better for {metric}. Use {key}.mode={METRIC_MODES[metric]}.")
