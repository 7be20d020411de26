"""Configurations of runs, for tests that ask one function."""

import functools
from dataclasses import is_dataclass, replace
from typing import Any

from laptime.config.compose import compose, hydra_session, resolve, without_hydra
from laptime.config.schema import Config


@functools.cache
def composed(*overrides: str) -> Config:
    """What `python train.py OVERRIDES` would train."""
    with hydra_session() as hydra:
        return resolve(without_hydra(compose(hydra, overrides)))


def changed(config: Config | None = None, **groups: Any) -> Config:
    """A configuration with other values: of a closed group those that are given, of an open one all.

    Args:
        config: None: the one of a run for which nothing was typed.
    """
    config = config or composed()
    found = {}
    for name, values in groups.items():
        group = getattr(config, name)
        found[name] = replace(group, **values) if is_dataclass(group) else values
    return replace(config, **found)
