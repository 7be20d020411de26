"""All that can be said about a configuration before a run begins: keys, types, ranges, classes, the environment."""

from collections.abc import Sequence

from omegaconf import DictConfig

from laptime.config import security
from laptime.config.compose import resolve_ahead, without_hydra
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
        The resolved configuration; its `run_dir` is None.
    """
    try:
        return _checked(composed, typed)
    except UserError as error:
        raise UserError(shorten_quotes(str(error), typed)) from error


# What a run fills in, and what to do instead of setting it.
_FILLED_IN = (
    ("run_label", "", "In a sweep it is what tells a run from the others. Choose the place with hydra.run.dir."),
    ("run_dir", None, "Choose the place with hydra.run.dir."),
    ("experiment_name", None, "Choose one with experiment=..."),
    ("runs_at_once", 1, "Leave it out; hydra/launcher=joblib starts several at once."),
)


def _checked(composed: DictConfig, typed: Sequence[str]) -> Config:
    preflight.check(composed)
    cfg = without_hydra(composed)
    for key, empty, instead in _FILLED_IN:
        node = cfg._get_node(key, validate_access=False)
        typed_value = empty if node is None else node._value()  # as it stands there: an interpolation may lead nowhere
        if typed_value != empty:
            raise UserError(f"{key}={typed_value}: is filled in when the run starts. {instead}")
    config = resolve_ahead(cfg)  # the directory is reserved when all is known to be right
    validate(config)
    security.check(config, typed)
    from laptime.training.open_groups import check_open_groups  # loads torch: after all that can be said without

    check_open_groups(config)
    return config
