"""Which classes and functions a configuration may name: an allow-list of exact places. Imports nothing of them.

A configuration file may come from anywhere, and `_target_` runs what it names. So a file can't widen the list itself:
what is added must have been typed, or stand in the environment. Hydra's own callbacks and plugins are outside of this.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from laptime.config.overrides import find_last
from laptime.config.schema import Config
from laptime.errors import UserError

KEY = "security.allowed_targets"
NOTIFY_KEY = "sweep.notify"
# Typed again each time that a sweep is resumed.
PER_INVOCATION_KEYS = (KEY, NOTIFY_KEY, "sweep.dry_run")
VARIABLE = "LAPTIME_ALLOWED_TARGETS"
# As it was when the process began: a configuration can set variables (`hydra.job.env_set`).
_FROM_ENVIRONMENT = tuple(each.strip() for each in os.environ.get(VARIABLE, "").split(",") if each.strip())

# Modules of which each name is allowed, but nothing below: modules import others, and `torch.nn.init.torch.load` is one
# of those names.
_PLACES = (
    "torch.nn", "torch.optim", "torch.optim.lr_scheduler", "torch.optim.swa_utils", "torchvision.models",
    # Not lightning.pytorch: where it is not installed, a folder of somebody's could bring one.
    "pytorch_lightning.callbacks", "pytorch_lightning.loggers", "pytorch_lightning.profilers",
    "laptime.models.mlp", "laptime.models.cnn", "laptime.models.resnet18", "laptime.models.efficientnet_b0",
    "laptime.models.vit", "laptime.models.transformer", "laptime.models.lstm", "laptime.models.logistic_regression",
    "laptime.models.torchvision", "laptime.models.timm",
    "laptime.data.mnist", "laptime.data.fashion_mnist", "laptime.data.cifar10", "laptime.data.synthetic",
    "laptime.schedulers.cosine_warmup", "laptime.schedulers.one_cycle",
    "laptime.callbacks.checkpoint", "laptime.callbacks.progress_bar",
    "laptime.loggers.mlflow", "laptime.loggers.wandb",
)  # fmt: skip


def check(config: Config, typed: Sequence[str]) -> None:
    """Check every `_target_` of a configuration before anything is imported.

    Args:
        typed: the overrides of the command line.

    Raises:
        UserError: one lies elsewhere, or a configuration file adds places, or a command for the shell.
    """
    notify = config.sweep.notify
    own = find_last(typed, NOTIFY_KEY)
    if own is not None and own.is_swept:
        raise UserError(
            f"{own.text}: is several values, to sweep over. A command with a comma takes quotes of its own: "
            f"'{NOTIFY_KEY}=\"...\"'."
        )
    if notify is not None and (own is None or notify != own.value):
        raise UserError(
            f"{NOTIFY_KEY}={notify}: comes from a configuration file, which can't have commands run. Type it."
        )
    if config.security.allowed_targets != _typed_places(typed):
        raise UserError(
            f"{KEY}={config.security.allowed_targets}: comes from a configuration file, which can't say what is "
            f"to be trusted. Type it, or set {VARIABLE}."
        )
    check_targets(config.as_dict(), typed)


def check_targets(config: Mapping[str, Any], typed: Sequence[str]) -> None:
    """Check every `_target_` in plain values from anywhere: those of a run's record, say.

    Args:
        config: nested.
        typed: the overrides of the command line.

    Raises:
        UserError: one lies elsewhere.
    """
    places = {*_PLACES, *_typed_places(typed), *_FROM_ENVIRONMENT}
    for key, target in _targets(config):
        place = target.rpartition(".")[0]
        if target not in places and place not in places:
            raise UserError(
                f"{key}={target}: is none of the places that a configuration may name. "
                f"If you trust it, add '{KEY}=[{place or target}]'."
            )


def _typed_places(typed: Sequence[str]) -> list[str]:
    own = find_last(typed, KEY)
    if own is None:
        return []
    value = own.value
    if not isinstance(value, list) or not all(isinstance(each, str) and "$" not in each for each in value):
        raise UserError(f"{own.text}: must be a list of modules or classes, each written out: '{KEY}=[my_net]'.")
    return [str(each) for each in value]


def _targets(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every `_target_` that is text, with its full key."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            full_key = f"{key}.{name}" if key else str(name)
            if name == "_target_" and isinstance(value, str):
                yield full_key, value
            else:
                yield from _targets(value, full_key)
    elif isinstance(node, list | tuple):
        for number, value in enumerate(node):
            yield from _targets(value, f"{key}[{number}]")
