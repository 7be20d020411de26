"""Runs all checks of a configuration before a run begins: keys, types, ranges, classes, the environment."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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
    config = check_settings(composed, cli_overrides)
    check_classes(config, cli_overrides)
    return config


def check_settings(composed: DictConfig, cli_overrides: Sequence[str]) -> Config:
    """The part of `check` that loads no torch, and so comes first."""
    with _short_quotes(cli_overrides):
        preflight.check(composed)
        config = resolve(without_hydra(composed))  # the run directory is reserved after all checks
        validate(config)
        security.check(config, cli_overrides)
        return config


def check_classes(config: Config, cli_overrides: Sequence[str]) -> None:
    """The part of `check` that imports the classes which the open groups name."""
    from laptime.training.open_groups import check_open_groups  # loads torch

    with _short_quotes(cli_overrides):
        check_open_groups(config)


@contextmanager
def _short_quotes(cli_overrides: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(shorten_quotes(str(error), cli_overrides)) from error
