"""Configurations of runs, for tests of single functions."""

import functools
from dataclasses import is_dataclass, replace
from typing import Any

from laptime.config.compose import compose, hydra_session, resolve, without_hydra
from laptime.config.schema import Config


@functools.cache
def composed(*overrides: str) -> Config:
    """The configuration of `python train.py OVERRIDES`."""
    with hydra_session() as hydra:
        return resolve(without_hydra(compose(hydra, overrides)))


def changed(config: Config | None = None, **groups: Any) -> Config:
    """A configuration with changed groups: single keys of a closed group, all keys of an open group.

    Args:
        config: the configuration to change; default: that of a run without overrides.
    """
    config = config or composed()
    changes = {}
    for name, values in groups.items():
        group = getattr(config, name)
        changes[name] = replace(group, **values) if is_dataclass(group) else values
    return replace(config, **changes)
