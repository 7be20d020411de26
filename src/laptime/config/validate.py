"""Rules across several keys that do not depend on the machine."""

import math

from laptime.config import own_task
from laptime.config.schema import LANGUAGE_MODELING, OWN, Config, TrainingConfig, positive
from laptime.errors import UserError
from laptime.record.files import flat
from laptime.record.score import ACCURACY


def resolve_warmup_epochs(warmup_epochs: int | str, num_laps: int) -> int:
    """The number of warm-up epochs (or laps): `auto` means one, or none if there is only one."""
    return min(1, num_laps - 1) if isinstance(warmup_epochs, str) else warmup_epochs


def per_rank_batch_size(batch_size: int, batch_scope: str, world_size: int) -> int:
    """Samples of one optimizer step on each rank.

    Raises:
        UserError: the ranks can't divide a global batch evenly.
    """
    if batch_scope == "per_rank":
        return batch_size
    if batch_size % world_size:
        raise UserError(
            f"training.batch_size={batch_size}: with training.batch_scope=global it must be a multiple of "
            f"strategy.world_size={world_size}."
        )
    return batch_size // world_size


def validate(config: Config) -> None:
    """Check the rules across keys.

    Args:
        config: the single values of the closed groups are already checked.

    Raises:
        UserError: names the key, the value and the rule.
    """
    for key, value in flat(config.as_dict()):
        if isinstance(value, float) and math.isnan(value):
            raise UserError(f"{key}=nan: must be a number, or null if the key allows it.")
    training, measure, strategy = config.training, config.measure, config.strategy
    if config.task.name == LANGUAGE_MODELING:
        _check_language_modeling(config)
    _check_steps(training)
    num_laps, warmup = training.num_laps, measure.warmup_epochs
    if resolve_warmup_epochs(warmup, num_laps) >= num_laps:
        raise UserError(
            f"measure.warmup_epochs={warmup}: must be less than {training.length}, so that at least one "
            f"{training.lap_word} is timed."
        )
    if measure.target_accuracy is not None and config.score != ACCURACY:
        raise UserError(
            f"measure.target_accuracy={measure.target_accuracy}: this task is scored by {config.score.name}. Use "
            "measure.target_score."
        )
    if measure.target_score is not None and config.score.unit == "%" and not 0 < measure.target_score <= 1:
        raise UserError(
            f"measure.target_score={measure.target_score}: must be in (0, 1], a fraction, because the score is "
            f"{config.score.name}."
        )
    if config.task.name == OWN:
        own_task.check(config)
        return
    if training.swa_start_epoch is not None and training.swa_start_epoch >= num_laps:
        raise UserError(
            f"training.swa_start_epoch={training.swa_start_epoch}: counts from 0, so it must be less than "
            f"{training.length}."
        )
    world_size = strategy.world_size if isinstance(strategy.world_size, int) else 1
    batch_size, parts = training.batch_size, training.num_microbatches
    per_rank = per_rank_batch_size(batch_size, training.batch_scope, world_size)
    if per_rank % parts:
        whose = (
            "the samples of one optimizer step" if per_rank == batch_size else "each rank's part of training.batch_size"
        )
        raise UserError(
            f"training.num_microbatches={parts}: must divide "
            f"{f'training.batch_size={batch_size}' if per_rank == batch_size else per_rank}, {whose}."
        )
    if config.device.name == "mps" and isinstance(strategy.world_size, int) and strategy.world_size > 1:
        raise UserError(
            f"device=mps strategy.world_size={strategy.world_size}: a Mac has one MPS device, and gloo can't "
            "all-reduce its tensors. Use device=cpu for several ranks, or strategy.world_size=1."
        )
    if strategy.static_graph and training.num_microbatches > 1:
        raise UserError(
            f"strategy.static_graph=true: DDP's static graph does not work with training.num_microbatches="
            f"{training.num_microbatches}. Leave one of them out."
        )
    if measure.bare_loop and parts > 1:
        raise UserError(
            f"measure.bare_loop=true: the bare loop does not split batches, as training.num_microbatches={parts} does. "
            "Leave one of them out."
        )
    if not config.has_validation:
        _check_without_validation(config)
    lr = config.optimizer.get("lr")
    if isinstance(lr, int | float):
        positive("optimizer.lr", lr)


def _check_steps(training: TrainingConfig) -> None:
    """Refuse laps that max_steps does not consist of."""
    max_steps, lap_steps = training.max_steps, training.lap_steps
    if lap_steps is None:
        return
    if max_steps is None:
        raise UserError(
            f"training.lap_steps={lap_steps}: needs training.max_steps, the length of the training. Set that, too, or "
            "training.lap_steps=null."
        )
    if max_steps % lap_steps:
        fewer = max_steps - max_steps % lap_steps
        values = f"{fewer} or {fewer + lap_steps}" if fewer else f"{lap_steps}"
        raise UserError(
            f"training.max_steps={max_steps}: must be a multiple of training.lap_steps={lap_steps}. Use {values}, or "
            "another training.lap_steps."
        )


def _check_language_modeling(config: Config) -> None:
    for key, why in {
        "label_smoothing": "smooths the labels of images",
        "mixup_alpha": "mixes images, and there is no mean of two characters",
    }.items():
        if value := getattr(config.training, key):
            raise UserError(
                f"training.{key}={value}: {why}, but task=language_modeling learns from text. Leave it out."
            )


def _check_without_validation(config: Config) -> None:
    needs = (
        "needs a validation loss, but dataset.val_fraction=0 leaves no validation set. Set dataset.val_fraction=0.2 or"
    )
    if config.training.early_stopping_patience is not None:
        patience = config.training.early_stopping_patience
        raise UserError(f"training.early_stopping_patience={patience}: {needs} training.early_stopping_patience=null.")
    for key in ("target_accuracy", "target_score"):
        if (target := getattr(config.measure, key)) is not None:
            raise UserError(
                f"measure.{key}={target}: needs a validation set, but dataset.val_fraction=0 leaves none. Set "
                f"dataset.val_fraction=0.2 or measure.{key}=null."
            )
