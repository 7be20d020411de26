"""Which classes and functions a configuration may name: an allow-list, and what --config-dir vouches for.

A configuration file may come from anywhere, and `_target_` calls what it names. So a file can't extend the list; the
command line and the environment can. Nothing is imported here. Hydra's own callbacks and plugins are not checked.
"""

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from laptime.config import vouching
from laptime.config.composition import config_dir
from laptime.config.overrides import find_last
from laptime.config.schema import Config
from laptime.errors import UserError
from laptime.text import escape_control_chars

KEY = "security.allowed_targets"
NOTIFY_KEY = "sweep.notify"
# A resumed sweep does not keep these keys.
PER_INVOCATION_KEYS = (KEY, NOTIFY_KEY, "sweep.dry_run")
VARIABLE = "LAPTIME_ALLOWED_TARGETS"
# Read when the process starts, because a configuration can set variables later (`hydra.job.env_set`).
_FROM_ENVIRONMENT = tuple(name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip())

# Each name directly in these modules is allowed, and nothing below it: modules import others, as in
# `torch.nn.init.torch.load`. `shipped_modules` adds Laptime's own.
_ALLOWED_MODULES = (
    "torch.nn", "torch.optim", "torch.optim.lr_scheduler", "torch.optim.swa_utils", "torchvision.models",
    # Not lightning.pytorch: if it is not installed, another folder could contain a package of that name.
    "pytorch_lightning.callbacks", "pytorch_lightning.loggers", "pytorch_lightning.profilers",
)  # fmt: skip


@cache
def shipped_modules() -> frozenset[str]:
    """Laptime's modules that a group of its own conf/ names as `_target_`. Other configuration folders don't count.

    conf/config.yaml is left out, because it names callbacks of Hydra, which a run does not build.
    """
    target = re.compile(r"^ *_target_: *(laptime\.[\w.]+)\.\w+ *(?:#.*)?$", re.MULTILINE)
    files = config_dir().glob("*/*.yaml")
    return frozenset(module for path in files for module in target.findall(path.read_text(encoding="utf-8")))


def check(config: Config, cli_overrides: Sequence[str]) -> None:
    """Check every `_target_` of a configuration before anything is imported.

    Raises:
        UserError: a `_target_` is not allowed, or a configuration file extends the allow-list or sets a shell command.
    """
    notify = config.sweep.notify
    override = find_last(cli_overrides, NOTIFY_KEY)
    if override is not None and override.is_swept:
        raise UserError(
            f"{override.text}: has several values. If the command contains a comma, quote it twice: "
            f"'{NOTIFY_KEY}=\"...\"'."
        )
    if notify is not None and (override is None or notify != override.value):
        raise UserError(
            f"{NOTIFY_KEY}={notify}: can only be set on the command line, because it runs a shell command. "
            "Remove it from the file."
        )
    if config.security.allowed_targets != _cli_targets(cli_overrides):
        raise UserError(
            f"{KEY}={config.security.allowed_targets}: can only be set on the command line or with {VARIABLE}. "
            "Remove it from the file."
        )
    check_targets(config.as_dict(), cli_overrides)


def check_targets(config: Mapping[str, Any], cli_overrides: Sequence[str], trained_with: Sequence[str] = ()) -> None:
    """Check every `_target_` in plain nested values, e.g. those of a run's record.

    Args:
        trained_with: the command of the run; the message names its --config-dir.

    Raises:
        UserError: a `_target_` is neither on the allow-list nor vouched for by --config-dir.
    """
    allowed = {*_ALLOWED_MODULES, *shipped_modules(), *_cli_targets(cli_overrides), *_FROM_ENVIRONMENT}
    for key, target in _targets(config):
        module = target.rpartition(".")[0]
        if target in allowed or module in allowed:
            continue
        try:
            vouching.check(target)
        except vouching.NotVouched as error:
            reason = (
                "" if vouching.state().folder is None else f". --config-dir does not allow it either, because {error}"
            )
            # Another folder would help only if this one has no such file.
            is_elsewhere = not reason or str(error).startswith("the folder has no module")
            if not reason and (folder := config_dir_in(trained_with)) is not None:
                raise UserError(
                    f"{key}={target}: is not on the allow-list of importable modules. "
                    f"Add --config-dir {escape_control_chars(shlex.quote(folder))}, as for the training."
                ) from error
            raise UserError(
                f"{key}={target}: is not on the allow-list of importable modules{reason}. "
                f"If you trust it, add '{KEY}=[{module or target}]'"
                f"{', or type the folder of its file as --config-dir' if is_elsewhere else ''}."
            ) from error


def config_dir_in(command: Sequence[str]) -> str | None:
    """The value of --config-dir in a command; None: it has none."""
    for word, following in zip(command, [*command[1:], ""], strict=False):
        flag, equals, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            return (value if equals else following) or None
    return None


def _cli_targets(cli_overrides: Sequence[str]) -> list[str]:
    """The value of `security.allowed_targets` on the command line."""
    override = find_last(cli_overrides, KEY)
    if override is None:
        return []
    value = override.value
    if not isinstance(value, list) or not all(isinstance(name, str) and "$" not in name for name in value):
        raise UserError(f"{override.text}: must be a list of modules or classes, without ${{...}}: '{KEY}=[my_net]'.")
    return [str(name) for name in value]


def _targets(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Full key and value of every `_target_` that is a string."""
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
