"""Runs all checks of a configuration before a run begins: keys, types, ranges, classes, the environment."""

from collections.abc import Sequence

from omegaconf import DictConfig

from laptime.config import security
from laptime.config.compose import resolve, without_hydra
from laptime.config.explain import shorten_quotes
from laptime.config.schema import Config
from laptime.config.validate import validate
from laptime.errors import UserError
from laptime.ranks import preflight


def check(composed: DictConfig, cli_overrides: Sequence[str]) -> Config:
    """Check a composed configuration as far as possible without building anything.

    Args:
        cli_overrides: the overrides of the command line. Settings in files are not trusted, so they are not included.

    Returns:
        The resolved configuration, with a placeholder for the run's directory.
    """
    try:
        return _checked(composed, cli_overrides)
    except UserError as error:
        raise UserError(shorten_quotes(str(error), cli_overrides)) from error


def _checked(composed: DictConfig, cli_overrides: Sequence[str]) -> Config:
    preflight.check(composed)
    config = resolve(without_hydra(composed))  # the run directory is reserved after all checks
    validate(config)
    security.check(config, cli_overrides)
    from laptime.training.open_groups import check_open_groups  # loads torch, so it comes last

    check_open_groups(config)
    return config
