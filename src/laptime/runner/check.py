"""Runs all checks of a configuration before a run begins: keys, types, ranges, classes, the environment."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from omegaconf import DictConfig

from laptime.config import security
from laptime.config.compose import resolve, without_hydra
from laptime.config.explain import shorten_quotes
from laptime.config.job_composer import ComposedJob
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
    check_classes([config], cli_overrides)
    return config


def check_settings(composed: DictConfig, cli_overrides: Sequence[str]) -> Config:
    """The part of `check` that loads no torch, and so comes first."""
    return _check_settings(composed, without_hydra(composed), cli_overrides)


def check_settings_of_jobs(jobs: Iterable[ComposedJob], cli_overrides: Sequence[str]) -> list[Config]:
    """`check_settings` for the jobs of a sweep."""
    return [_check_settings(*job.views(), cli_overrides) for job in jobs]


def check_classes(configs: Iterable[Config], cli_overrides: Sequence[str]) -> None:
    """The part of `check` that imports the classes which the open groups name. Equal open groups are checked once."""
    from laptime.training.open_groups import KINDS, check_open_groups  # loads torch

    passed: set[str] = set()
    for config in configs:
        groups = repr([config.open_group(name) for name in KINDS])  # all that the check depends on
        if groups not in passed:
            with _short_quotes(cli_overrides):
                check_open_groups(config)
            passed.add(groups)


def _check_settings(composed: DictConfig, cfg: DictConfig, cli_overrides: Sequence[str]) -> Config:
    """Check a configuration, given with and without Hydra's own part."""
    with _short_quotes(cli_overrides):
        preflight.check(composed)
        config = resolve(cfg)  # the run directory is reserved after all checks
        validate(config)
        security.check(config, cli_overrides)
        return config


@contextmanager
def _short_quotes(cli_overrides: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(shorten_quotes(str(error), cli_overrides)) from error
