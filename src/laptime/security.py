"""Which classes and functions a configuration may name: an allow-list of exact places. Imports nothing of them.

A configuration file may come from anywhere, and `_target_` runs what it names. So a file can't widen the list itself:
what is added must have been typed, or stand in the environment. Hydra's own callbacks and plugins are outside of this.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from laptime.errors import UserError

KEY = "security.allowed_targets"
NOTIFY_KEY = "sweep.notify"
VARIABLE = "LAPTIME_ALLOWED_TARGETS"
# As it was when the process began: a configuration can set variables (`hydra.job.env_set`).
_FROM_ENVIRONMENT = tuple(each.strip() for each in os.environ.get(VARIABLE, "").split(",") if each.strip())

# Modules of which each name is allowed, but nothing below: modules import others, and `torch.nn.init.torch.load` is one
# of those names.
_PLACES = (
    "torch.nn", "torch.optim", "torch.optim.lr_scheduler", "torch.optim.swa_utils", "torchvision.models",
    *(
        f"{package}.{module}"
        for package in ("pytorch_lightning", "lightning.pytorch")
        for module in ("callbacks", "loggers", "profilers")
    ),
    "laptime.models.mlp", "laptime.models.cnn",
    "laptime.data.mnist", "laptime.data.fashion_mnist", "laptime.data.cifar10", "laptime.data.synthetic",
    "laptime.callbacks.checkpoint", "laptime.callbacks.progress_bar",
)  # fmt: skip


def check(config: Mapping[str, Any], typed: Sequence[str]) -> None:
    """Check every `_target_` of a configuration before anything is imported.

    Args:
        config: resolved, plain values.
        typed: the overrides of the command line.

    Raises:
        UserError: one lies elsewhere, or a configuration file adds places, or a command for the shell.
    """
    notify = config["sweep"]["notify"]
    if notify is not None and notify != _typed(typed, NOTIFY_KEY):
        raise UserError(
            f"{NOTIFY_KEY}={notify}: comes from a configuration file, which can't have commands run. Type it."
        )
    added = _typed_places(typed)
    if config["security"]["allowed_targets"] != added:
        raise UserError(
            f"{KEY}={config['security']['allowed_targets']}: comes from a configuration file, which can't say what is "
            f"to be trusted. Type it, or set {VARIABLE}."
        )
    places = {*_PLACES, *added, *_FROM_ENVIRONMENT}
    for key, target in _targets(config):
        place = target.rpartition(".")[0]
        if target not in places and place not in places:
            raise UserError(
                f"{key}={target}: is none of the places that a configuration may name. "
                f"If you trust it, add {KEY}=[{place or target}]."
            )


def _typed(typed: Sequence[str], key: str) -> Any:
    """The value that a key was given on the command line; None: none."""
    own = [override for override in typed if override.lstrip("+~").partition("=")[0] == key]
    if not own:
        return None
    (override,) = OverridesParser.create().parse_overrides(own[-1:])
    return None if override.is_sweep_override() else override.value()


def _typed_places(typed: Sequence[str]) -> list[str]:
    own = [override for override in typed if override.lstrip("+~").partition("=")[0] == KEY]
    if not own:
        return []
    value = _typed(typed, KEY)
    if not isinstance(value, list) or not all(isinstance(each, str) and "$" not in each for each in value):
        raise UserError(f"{own[-1]}: must be a list of modules or classes, each written out: {KEY}=[my_net].")
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
