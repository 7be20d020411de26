"""Finds the overrides that Hydra refuses, and composes the configuration without them."""

import re
from collections.abc import Sequence
from typing import cast

from hydra._internal.hydra import Hydra
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf

from laptime.config.composition import compose_with_hydra
from laptime.config.overrides import Override, parse
from laptime.config.schema import Config


def defaults(hydra: Hydra, config_name: str) -> DictConfig:
    """The configuration without any override, or the schema alone if a file is wrong, too."""
    try:
        return compose_with_hydra(hydra, config_name, [])
    except Exception:  # the error that is being explained is another one
        return cast(DictConfig, OmegaConf.structured(Config))


def compose_the_rest(
    hydra: Hydra, overrides: Sequence[str], config_name: str, error: Exception
) -> tuple[DictConfig, list[str]]:
    """Compose without the overrides that Hydra refuses.

    Args:
        error: Hydra's error about all overrides together.

    Returns:
        The configuration, and the refused overrides. If Hydra does not name one that it refuses, the defaults.
    """
    rest = list(overrides)
    while (refused := _refused_by(error, rest)) is not None:
        rest = [text for text in rest if text != refused]
        try:
            return compose_with_hydra(hydra, config_name, rest), [text for text in overrides if text not in rest]
        except Exception as next_error:
            error = next_error
    return defaults(hydra, config_name), [text for text in overrides if text not in rest]


def _refused_by(error: Exception, overrides: list[str]) -> str | None:
    """The override that an error of Hydra is about; None: it does not say."""
    if isinstance(error, MissingConfigException):
        key = str(error.missing_cfg_file or "").rpartition("/")[0]
    elif "Could not delete" in str(error):
        key = parse(quoted_in(str(error))).full_key
    else:
        named = override_of(str(error), overrides)
        return None if named is None or named.text not in overrides else named.text
    return next((item.text for item in map(parse, overrides) if key in (item.key, item.full_key)), None)


def override_of(message: str, overrides: list[str]) -> Override | None:
    """The override that Hydra's message quotes."""
    match = re.match(r"Could not override '(.*)'|Error merging override (.*)", message)
    if match is None:
        return None
    named = match[1] or match[2]
    return next((item for item in map(parse, overrides) if named in (item.text, item.full_key)), parse(named))


def quoted_in(message: str) -> str:
    match = re.search(r"'(.*)'", message)
    return match[1] if match else message
