"""Tries network, optimizer and scheduler before training, so that a wrong argument gives a message of one line."""

import copy
import logging

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.optim.lr_scheduler import ReduceLROnPlateau

from laptime.config import targets
from laptime.config.schema import Config
from laptime.data.source import DataSource
from laptime.errors import UserError, first_line, is_out_of_memory
from laptime.ranks.rank import Rank
from laptime.ranks.sharded_optimizer import reason_not_to_shard
from laptime.training import callback_hooks
from laptime.training.capabilities import configured_optimizer

log = logging.getLogger(__name__)


def try_network(network: nn.Module, source: DataSource) -> None:
    """Run the network on two samples of zeros before training.

    Raises:
        UserError: it fails, returns logits of the wrong shape, or has no trainable weights.
    """
    expected, (inputs, _) = source.logits_shape(2), source.example(2, "cpu")
    name = f"model={type(network).__name__}"
    if any(isinstance(weight, UninitializedParameter) for weight in network.parameters()):
        raise UserError(
            f"{name}: lazy layers have no weights before the first batch. Use layers with a given number of inputs."
        )
    before = copy.deepcopy(network.state_dict())
    try:
        logits = network.eval()(inputs)
        if isinstance(logits, torch.Tensor) and not logits.requires_grad:  # perhaps only in eval mode
            with torch.random.fork_rng(devices=[]):
                is_trained = getattr(network.train()(inputs), "requires_grad", False)
        else:
            is_trained = True
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = first_line(error)
        raise UserError(f"{name}: fails on {source.description} ({reason}).") from error
    network.load_state_dict(before)
    network.train()
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != expected or not logits.is_floating_point():
        raise UserError(
            f"{name}: returns {shape} for two {source.description}. It must return floating-point logits of shape "
            f"{expected}."
        )
    if not any(weight.requires_grad for weight in network.parameters()):
        raise UserError(
            f"{name}: no weight has requires_grad=True, so there is nothing to train. Set it on the weights to train."
        )
    if not is_trained:
        raise UserError(f"{name}: its logits have no gradient. Remove .detach() or torch.no_grad() from forward().")


def try_optimizer(module: pl.LightningModule, config: Config) -> torch.optim.Optimizer:
    """Take one step of optimizer and scheduler before training: some check their arguments only in `step()`.

    Returns:
        The optimizer. Training makes another one.

    Raises:
        UserError: a step fails, or the module has no optimizer or more than one.
    """
    optimizer, scheduler = configured_optimizer(module)
    if any(parameter.grad is not None for parameter in module.parameters()):
        raise AssertionError("the trial step would change weights: some have gradients")
    try:
        optimizer.step()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{targets.shown('optimizer', config.optimizer)}: can't take a step ({error}).") from error
    try:
        if isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step(0.0)
        elif scheduler is not None:
            scheduler.step()
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise UserError(f"{targets.shown('scheduler', config.scheduler)}: can't take a step ({error}).") from error
    return optimizer


def shards_optimizer(config: Config, optimizer: torch.optim.Optimizer, callbacks: list[Callback], rank: Rank) -> bool:
    """Whether each rank updates only its shard of the weights.

    Raises:
        UserError: `strategy.shard_optimizer=true`, but this optimizer can't be sharded.
    """
    strategy = config.strategy
    if strategy.comm_hook != "shared_memory" or not strategy.shard_optimizer or not rank.is_distributed:
        return False
    reason = reason_not_to_shard(optimizer, config.training.gradient_clip_norm)
    if config.measure.bare_loop:
        reason = "measure.bare_loop=true updates all weights on each rank, so it would not compare the same work"
    if callback_hooks.overridden_step_hooks(callbacks):
        reason = "a callback may read the gradients, and each rank would have averaged only those of its shard"
    if reason is not None and strategy.shard_optimizer is True:
        raise UserError(f"strategy.shard_optimizer=true: {reason}. Use strategy.shard_optimizer=auto.")
    if reason is not None and rank.is_first:
        log.info("the optimizer is not sharded: %s", reason)
    return reason is None
