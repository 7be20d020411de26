"""Builds the objects of a run from its configuration: device, data, network, module, callbacks."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping
from torch import nn

from laptime.config.schema import Config
from laptime.config.validate import per_rank_batch_size
from laptime.data.datamodule import DataModule
from laptime.data.source import DataSource
from laptime.errors import TrainingFailed, is_out_of_memory
from laptime.lap.clock import LapClock
from laptime.machine.device import Device, check_precision
from laptime.machine.device import resolve as resolve_device
from laptime.machine.hardware import require_free_memory
from laptime.ranks.rank import Rank
from laptime.ranks.stopping import StopRequest
from laptime.tasks.choose import make_task
from laptime.text import byte_size
from laptime.training import callback_hooks, open_groups
from laptime.training.network_module import NetworkModule
from laptime.training.stepper import Stepper
from laptime.training.weight_average import WeightAverage

log = logging.getLogger(__name__)

_OVERFLOW_BYTES = 2**63  # assumed size where torch can't count the bytes of a tensor


def prepare_device(config: Config, index: int = 0) -> Device:
    """Select the training device and apply torch's settings for precision and cuDNN.

    Args:
        config: the resolved configuration.
        index: the device's index, if there are several.

    Raises:
        UserError: the device is absent, or can't train in this precision.
    """
    settings = config.training
    device = resolve_device(config.device.name, config.device.fallback, index)
    device.select()
    check_precision(settings.precision, device)
    torch.set_float32_matmul_precision(settings.matmul_precision)
    torch.backends.cudnn.benchmark = settings.cudnn_benchmark
    return device


def build_data(config: Config, device: Device, rank: Rank, clock: LapClock | None = None) -> DataModule:
    settings = config.training
    return make_task(config).data_module(
        open_groups.build(config, "dataset"),
        device,
        batch_size=per_rank_batch_size(settings.batch_size, settings.batch_scope, rank.world_size),
        eval_batch_size=settings.eval_batch_size,
        steps_per_execution=settings.steps_per_execution,
        seed=config.seed,
        rank=rank,
        clock=clock,
        lap_steps=settings.steps_per_lap,
    )


def build_module(
    config: Config,
    network: nn.Module,
    device: Device,
    stop: StopRequest,
    identity: dict[str, Any],
    rank: Rank,
    num_steps_per_epoch: int,
) -> NetworkModule:
    settings = config.training

    def make_scheduler(optimizer: torch.optim.Optimizer) -> Any:
        if config.scheduler.get("_target_") is None:
            return None
        return open_groups.build(config, "scheduler", optimizer=optimizer, num_steps_per_epoch=num_steps_per_epoch)

    stepper = Stepper(
        network,
        device,
        precision=settings.precision,
        num_microbatches=settings.num_microbatches,
        gradient_clip_norm=settings.gradient_clip_norm,
        task=make_task(config),
    )
    return NetworkModule(
        stepper,
        make_optimizer=lambda parameters: open_groups.build(config, "optimizer", params=parameters),
        make_scheduler=make_scheduler,
        make_average=partial(WeightAverage, ema_decay=settings.ema_decay, swa_start_epoch=settings.swa_start_epoch),
        seed=config.seed,
        stop=stop,
        identity=identity,
        rank=rank,
        lap_word=settings.lap_word,
    )


def build_network(node: Mapping[str, Any], source: DataSource, num_ranks: int = 1) -> nn.Module:
    """Build the network, if it fits into memory.

    Args:
        node: the `model` group of the configuration.
        source: the data set, which has the sizes of the input and the logits.
        num_ranks: the number of ranks on this machine; each holds a copy.

    Raises:
        UserError: the arguments don't fit the class, or the network is too large.
        TrainingFailed: out of memory.
    """
    injected = source.network_arguments
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            weights = list(open_groups.build_node("model", node, **injected).parameters())
        num_bytes = sum(weight.numel() * weight.element_size() for weight in weights)
    except Exception as error:  # not every network can be built on "meta"; a real mistake shows up again below
        num_bytes = _OVERFLOW_BYTES if "overflow" in str(error) else 0
    sizes = ", ".join(f"model.{key}={value}" for key, value in node.items() if key != "_target_")
    key, contents = sizes or f"model={node['_target_']}", "weights, and gradients of the same size{ranks}"
    require_free_memory(key, num_bytes, contents, num_ranks, "Use a smaller model.")
    try:
        network: nn.Module = open_groups.build_node("model", node, **injected)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingFailed(
            f"out of memory while building the model, which has {byte_size(num_bytes, 'GB', 2)} of weights ({key}). "
            "Use a smaller model or fewer ranks."
        ) from error
    return network


def build_callbacks(config: Config) -> list[Callback]:
    return [open_groups.build(config, key) for key, _ in open_groups.entries(config, "callbacks")]


def use_single_steps(callbacks: list[Callback], data: DataModule, rank: Rank) -> None:
    """Set steps_per_execution to 1 if a callback has a hook that must run after each optimizer step."""
    names = [type(callback).__name__ for callback in callbacks if callback_hooks.needs_single_steps(callback)]
    if names and data.steps_per_execution > 1:
        data.steps_per_execution = 1
        if rank.is_first:
            log.info("using training.steps_per_execution=1, because %s has hooks for single steps", ", ".join(names))


def keep_configured_patience(callback: EarlyStopping) -> None:
    """Keep the configured patience when a run resumes: Lightning 2.6 takes it from the checkpoint (not reported)."""
    load_state_dict = callback.load_state_dict

    def load(state_dict: dict[str, Any]) -> None:
        load_state_dict({**state_dict, "patience": callback.patience})

    callback.load_state_dict = load  # type: ignore[method-assign]


def network_name(network: nn.Module) -> str:
    """Return the network's attribute `name`, or else its class name in lower case."""
    name = getattr(network, "name", None)
    return name if isinstance(name, str) else type(network).__name__.lower()
