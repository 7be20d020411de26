"""Checks and builds the objects of the open groups. Refuses objects that Laptime would ignore or misuse.

Classes are checked before anything is written. What a function returns is checked when it is built.
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

from laptime.command_line import program
from laptime.config import targets
from laptime.config.schema import OWN, Config
from laptime.data.source import DataSource
from laptime.errors import UserError
from laptime.schedulers.step_schedule import StepSchedule
from laptime.tasks.choose import CLASSES

KINDS: dict[str, type] = {
    "dataset": DataSource,
    "model": nn.Module,
    "optimizer": torch.optim.Optimizer,
    "scheduler": LRScheduler,
    "profiler": Profiler,
    "callbacks": Callback,
    "logger": Logger,
    "task.module": pl.LightningModule,
    "task.data": pl.LightningDataModule,
}

# The arguments that Laptime passes to the constructors in addition to the configured keys.
INJECTED_ARGUMENTS = {
    "model": frozenset[str]().union(*(task.network_arguments for task in CLASSES.values())),
    "optimizer": frozenset({"params"}),
    "scheduler": frozenset({"optimizer", "num_steps_per_epoch"}),
}

# Lightning's callbacks whose work Laptime does itself, and the setting to use instead.
REPLACED_CALLBACKS = {
    pl.callbacks.GradientAccumulationScheduler: "training.num_microbatches",
    pl.callbacks.StochasticWeightAveraging: "training.swa_start_epoch",
    pl.callbacks.BatchSizeFinder: f"{program('tune')} batch_size",
    pl.callbacks.LearningRateFinder: f"{program('tune')} lr",
    pl.callbacks.ProgressBar: "callbacks.progress_bar",
}

# torch's schedulers that must be stepped after every batch, and what to use instead.
PER_STEP_SCHEDULERS = {
    OneCycleLR: "Use scheduler=one_cycle.",
    CyclicLR: "Use scheduler=one_cycle, or derive a schedule from laptime.schedulers.step_schedule.StepSchedule.",
}

# Whether lower or higher values of Laptime's validation metrics are better.
METRIC_MODES = {"val_loss": "min", "val_accuracy": "max"}


def check_open_groups(config: Config) -> None:
    """Check keys, types and classes of the open groups against the constructors they name, without calling them.

    Raises:
        UserError: a check fails; names the key, the value and the rule.
    """
    for key, node in _nodes(config):
        group = _group_of(key)
        if group == "model":
            _refuse_library(node, targets.locate(key, node))
        for inner_key, inner_node, inner_target in targets.targets_in(key, node):
            _refuse_misused_class(group, inner_key, inner_node, inner_target)
        target = targets.check(key, node, INJECTED_ARGUMENTS.get(group, frozenset()), KINDS[group])
        if group in ("dataset", "model"):
            _refuse_other_task(group, node, target, config)
        if group == "callbacks" and config.task.name != OWN:
            _refuse_replaced_callback(key, node, target)
        _check_monitor(key, node, target, _argument(node, target, "monitor"), _argument(node, target, "mode"), config)


def build(config: Config, key: str, **injected: Any) -> Any:
    """Make the object of a group, or of one entry of callbacks and logger. See `build_node`.

    Args:
        key: the group or entry, e.g. model or callbacks.checkpoint.
    """
    node = dict(entries(config, _group_of(key)))[key]
    built = build_node(key, node, **injected)
    for component in _components(built):
        monitor, mode = (getattr(component, attribute, None) for attribute in ("monitor", "mode"))
        _check_monitor(key, node, type(component), monitor, mode, config)
    return built


def build_node(key: str, node: Mapping[str, Any], **injected: Any) -> Any:
    """Make the object that a mapping with a `_target_` describes.

    Args:
        key: the mapping's key in the configuration, which begins with its group.
        injected: additional arguments. Those that the target does not accept are left out.

    Raises:
        UserError: the arguments don't fit, or Laptime can't use the object.
    """
    group = _group_of(key)
    built = targets.build(key, node, KINDS[group], **injected)
    for component in _components(built):
        _refuse_misused_class(group, key, node, type(component))
        if isinstance(component, StepSchedule) and component is not built:
            name = type(component).__name__
            raise UserError(
                f"{key}._target_={node['_target_']}: {name} changes the learning rate at every optimizer step, but "
                f"{type(built).__name__} is stepped once per epoch. Use {name} without {type(built).__name__}."
            )
    return built


def entries(config: Config, group: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the mappings of the objects that a group describes, each with its full key.

    The groups callbacks and logger hold any number of objects. Entries that are null are left out. The groups scheduler
    and profiler may hold none, and so do those that the task does not use.
    """
    nodes = config.open_group(group)
    if group in ("callbacks", "logger"):
        return [(f"{group}.{name}", node) for name, node in nodes.items() if node is not None]
    required = ("dataset", "model", "optimizer") if config.task.name != OWN else ()
    return [(group, nodes)] if nodes.get("_target_") is not None or group in required else []


def _group_of(key: str) -> str:
    """The group of an object: `callbacks` for `callbacks.checkpoint`."""
    return key if key in KINDS else key.partition(".")[0]


def _nodes(config: Config) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the keys and mappings of all objects that Laptime builds."""
    for group in KINDS:
        group_entries = entries(config, group)
        if not group_entries and group in ("scheduler", "profiler"):
            for key, value in config.open_group(group).items():
                if key != "_target_":
                    raise UserError(f"{group}.{key}={value}: has no effect without a {group}. Choose one: {group}=...")
        for key, node in group_entries:
            if not isinstance(node, Mapping):
                raise UserError(f"{key}={node}: must be a mapping with a _target_, or null.")
            yield key, node


def _components(built: Any) -> Iterator[Any]:
    """Yield an object and the objects inside it: the layers of a network, the schedulers of a SequentialLR."""
    if isinstance(built, nn.Module):
        yield from built.modules()
        return
    yield built
    if isinstance(built, LRScheduler):
        for scheduler in getattr(built, "_schedulers", ()):  # private in torch 2.14; not reported
            yield from _components(scheduler)


def _refuse_library(node: Mapping[str, Any], target: Any) -> None:
    """Refuse functions of torchvision and timm: `model=torchvision` and `model=timm` fit their networks to the data."""
    library = str(getattr(target, "__module__", "")).partition(".")[0]
    if library in ("torchvision", "timm") and not isinstance(target, type):
        name = target.__name__
        if name in ("get_model", "create_model"):
            name = node.get("name") or node.get("model_name") or "NAME"
        raise UserError(
            f"model._target_={node['_target_']}: {library}'s networks are chosen by name, and Laptime fits them to the "
            f"images and classes. Use model={library} model.name={name}."
        )


def _refuse_misused_class(group: str, key: str, node: Mapping[str, Any], target: Any) -> None:
    """Refuse a class whose objects Laptime would not use as their author intends. Functions pass."""
    setting = f"{key}._target_={node['_target_']}"
    if not isinstance(target, type):
        return
    if group == "model" and is_lightning_module(target):
        raise UserError(
            f"{setting}: {target.__name__} is a LightningModule, but Laptime would not call its training_step and "
            "configure_optimizers. Use only the network, an nn.Module that maps images to logits, or task=own "
            f"task.module._target_={node['_target_']}."
        )
    for scheduler_class, remedy in PER_STEP_SCHEDULERS.items() if group == "scheduler" else ():
        if issubclass(target, scheduler_class):
            raise UserError(
                f"{setting}: {scheduler_class.__name__} changes the learning rate at every optimizer step, but Laptime "
                f"steps torch's schedulers once per epoch. {remedy}"
            )


def _refuse_other_task(group: str, node: Mapping[str, Any], target: Any, config: Config) -> None:
    """Refuse a data set of another task, and a network that needs the arguments which only another task has."""
    task = CLASSES[config.task.name]
    for other in CLASSES.values():
        if other is task:
            continue
        setting = f"{group}._target_={node['_target_']}"
        instead = f"Choose another {group}, or use task={other.name}."
        if group == "dataset" and isinstance(target, type) and issubclass(target, other.data_class):
            raise UserError(
                f"{setting}: holds {other.content}, but task={task.name} learns from {task.content}. {instead}"
            )
        needed = sorted(other.network_arguments & _required_arguments(target))
        if group == "model" and needed:
            raise UserError(
                f"{setting}: is a network for {other.content}, because it needs {' and '.join(needed)}, but "
                f"task={task.name} learns from {task.content}. {instead}"
            )


def _required_arguments(target: Any) -> set[str]:
    """Return the names of the arguments without a default."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return set()
    return {name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty}


def is_lightning_module(cls: type) -> bool:
    """Whether a class is a LightningModule of either package, `lightning` or `pytorch_lightning`."""
    return any(
        base.__name__ == "LightningModule" and base.__module__.partition(".")[0] in ("lightning", "pytorch_lightning")
        for base in cls.__mro__
    )


def _refuse_replaced_callback(key: str, node: Mapping[str, Any], target: Any) -> None:
    if isinstance(target, type) and issubclass(target, pl.callbacks.BackboneFinetuning):
        raise UserError(
            f"{key}={node['_target_']}: BackboneFinetuning freezes module.backbone, but Laptime's module has "
            "module.network instead. Derive a callback from BaseFinetuning that freezes layers of module.network."
        )
    for callback_class, setting in REPLACED_CALLBACKS.items():
        if isinstance(target, type) and issubclass(target, callback_class):
            raise UserError(
                f"{key}={node['_target_']}: {callback_class.__name__} has no effect, because Laptime does this itself. "
                f"Use {setting}."
            )


def _argument(node: Mapping[str, Any], target: Any, name: str) -> Any:
    """Return the value that an argument will have, from the mapping or the target's default; None: unknown."""
    if name in node:
        return node[name]
    try:
        parameter = inspect.signature(target).parameters.get(name)
    except (TypeError, ValueError):
        return None
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def _check_monitor(key: str, node: Mapping[str, Any], target: Any, monitor: Any, mode: Any, config: Config) -> None:
    """Check that the monitored metric, if Laptime logs it, exists in this run, and that `mode` fits it.

    Args:
        target: the class or function that the configuration names, or the class of the object it made.
        monitor, mode: arguments or attributes of the object; None: it has none, or the value is unknown.
    """
    is_plateau = isinstance(target, type) and issubclass(target, ReduceLROnPlateau)
    metric = "val_loss" if is_plateau else monitor  # Laptime steps ReduceLROnPlateau with val_loss
    if metric not in METRIC_MODES or not (is_plateau or key.startswith("callbacks.")):
        return
    if metric == "val_accuracy" and not CLASSES[config.task.name].has_accuracy:
        raise UserError(
            f"{key}={node['_target_']}: monitors val_accuracy, which task={config.task.name} does not "
            "have. Use val_loss."
        )
    if not config.has_validation:
        raise UserError(
            f"{key}={node['_target_']}: monitors {metric}, but dataset.val_fraction=0 leaves no validation set. "
            f"Set dataset.val_fraction=0.2, or {'choose another scheduler' if is_plateau else f'remove {key}'}."
        )
    if mode in ("min", "max") and mode != METRIC_MODES[metric]:
        better = {"min": "lower", "max": "higher"}[METRIC_MODES[metric]]
        raise UserError(f"{key}.mode={mode}: {better} is better for {metric}. Use {key}.mode={METRIC_MODES[metric]}.")
