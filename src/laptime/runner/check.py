"""All that can be said about a configuration before a run begins: keys, types, ranges, classes, the environment."""

from collections.abc import Sequence

from omegaconf import DictConfig

from laptime.config import security
from laptime.config.compose import resolve, without_hydra
from laptime.config.explain import shorten_quotes
from laptime.config.schema import Config
from laptime.config.validate import validate
from laptime.errors import UserError
from laptime.ranks import preflight


def check(composed: DictConfig, typed: Sequence[str]) -> Config:
    """Check all that can be said about a composed configuration without building anything.

    Args:
        typed: the overrides of the command line, alone: what a file adds is not trusted.

    Returns:
        The resolved configuration, with a placeholder for the run's directory.
    """
    try:
        return _checked(composed, typed)
    except UserError as error:
        raise UserError(shorten_quotes(str(error), typed)) from error


def _checked(composed: DictConfig, typed: Sequence[str]) -> Config:
    preflight.check(composed)
    config = resolve(without_hydra(composed))  # the directory is reserved once everything is checked
    validate(config)
    security.check(config, typed)
    from laptime.training.open_groups import check_open_groups  # loads torch: after all that can be said without

    check_open_groups(config)
    return config
