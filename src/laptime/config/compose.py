"""From what was typed to a checked configuration, and every mistake in it to one clear line. Loads no torch."""

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import setup_globals
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from hydra.types import RunMode
from hydra.version import setbase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from laptime.config import vouching
from laptime.config.composition import compose_with_hydra, config_dir, refuse_name_clashes
from laptime.config.explain import (
    explain,
    first_leaf,
    keys_by_group,
    name_override,
    reason_of,
    shorten_quotes,
    unknown_key,
)
from laptime.config.overrides import clear_parse_cache, find, find_last, key_of, parse
from laptime.config.run_values import register_resolver
from laptime.config.schema import Config, Group, closed_groups, register_schema
from laptime.errors import UserError
from laptime.text import escape_control_chars

CONFIG_NAME = "config"

Schema = TypeVar("Schema", bound=Group)


@contextmanager
def hydra_session(extra_config_dir: str | None = None, conf: Path | None = None) -> Iterator[Hydra]:
    """A Hydra that finds Laptime's configuration; the one that the caller may have under way comes back afterwards.

    Args:
        extra_config_dir: a folder that is searched before conf/ (the flag --config-dir).
        conf: what is searched instead of conf/.
    """
    backup = get_gh_backup()
    setbase("1.3")
    setup_globals()
    register_schema()
    register_resolver()
    search_path = create_config_search_path(str(conf or config_dir()))
    if extra_config_dir is not None:
        folder = Path(extra_config_dir).absolute()
        if not folder.is_dir():
            raise UserError(f"--config-dir {extra_config_dir}: there is no such folder.")
        refuse_name_clashes(f"--config-dir {extra_config_dir}", folder)
        search_path.prepend("command-line", f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    # An earlier run of this process may have left its settings: `${hydra:...}` would take its values from them.
    before, HydraConfig.instance().cfg = HydraConfig.instance().cfg, None
    try:
        yield Hydra.create_main_hydra2(task_name="train", config_search_path=search_path)
    finally:
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = before
        restore_gh_from_backup(backup)
        clear_parse_cache()


def add_user_modules(extra_config_dir: str | None) -> None:
    """Let the user's own modules be imported from the folder of --config-dir and from the current folder.

    The folder of --config-dir vouches for its modules (laptime.config.vouching), the current folder does not.

    Args:
        extra_config_dir: the value of --config-dir on this command line.
    """
    # Hydra searches for plugins now. Later it would run a hydra_plugins/ in the folders that are added.
    Plugins.instance()
    vouching.vouch_for(extra_config_dir)
    sys.path += [str(Path(folder).absolute()) for folder in (extra_config_dir, ".") if folder is not None]


def compose(hydra: Hydra, overrides: Sequence[str], config_name: str | None = None) -> DictConfig:
    """Compose what one run would get, Hydra's own part (`hydra`) included.

    Raises:
        UserError: unknown option or key, wrong type, bad syntax: one line.
    """
    name = config_name or CONFIG_NAME
    without_key = next((each for each in overrides if not key_of(each).strip()), None)
    if without_key is not None:
        raise UserError(f"'{escape_control_chars(without_key)}': names no key. Use group=option or key=value.")
    with_null = next((each for each in overrides if "\0" in each), None)
    if with_null is not None:  # no command line can hold it, but a list in Python can
        raise UserError(f"'{escape_control_chars(with_null)}': holds a null character. Leave it out.")
    for override in overrides:
        if key_of(override) in ("hydra", "hydra.run", "hydra.sweep"):
            raise UserError(f"{override}: sets several keys at once. Write each by itself: {key_of(override)}.dir=...")
    overrides = add_search_sweeper(overrides)
    _refuse_no_option(hydra, overrides)
    try:
        return compose_with_hydra(hydra, name, overrides)
    except UserError:
        raise
    except Exception as error:  # of many kinds, ANTLR's and Python's own among them
        message = shorten_quotes(explain(hydra, overrides, name, error), overrides)
        raise UserError(name_override(hydra, overrides, name, message)) from error


def experiment_of(composed: DictConfig) -> str | None:
    """The option of the group experiment that a configuration was composed with; of several, all: `one+other`."""
    chosen = composed.hydra.runtime.choices.get("experiment")
    if chosen is None:
        typed = find_last(list(composed.hydra.overrides.task), "experiment")
        value = None if typed is None else typed.value
        chosen = "+".join(map(str, value)) if isinstance(value, list) else value
    return None if chosen in (None, "none") else str(chosen)


def is_sweep_without_flag(hydra: Hydra, overrides: Sequence[str], config_name: str) -> bool:
    """Whether a configuration stands for a sweep though -m was not typed, as Hydra asks: whatever is swept over."""
    try:
        cfg = compose_with_hydra(hydra, config_name, add_search_sweeper(overrides), RunMode.MULTIRUN)
    except Exception:  # whoever composes it for its own sake says what is wrong
        return False
    return bool(cfg.hydra.mode == RunMode.MULTIRUN)


def add_search_sweeper(overrides: Sequence[str]) -> list[str]:
    """What was typed, and the sweeper that a `search` needs: a file can't choose one, conf/config.yaml has done so."""
    search = find_last(overrides, "search")
    if (
        search is None
        or (not search.is_swept and search.value in (None, "", "none"))
        or find(overrides, "hydra/sweeper") is not None
    ):
        return list(overrides)
    return [*overrides, "hydra/sweeper=optuna"]


def resolve(cfg: DictConfig) -> Config:
    """Check types, ranges and keys of a composed configuration of a run and resolve it: see `resolve_as`.

    `${laptime:run_dir}` is a placeholder, unless `laptime.config.run_values.known_run` has named the run.
    """
    return resolve_as(Config, cfg)


def resolve_as(schema: type[Schema], cfg: DictConfig) -> Schema:
    """Check types, ranges and keys of a composed configuration and resolve it.

    Args:
        schema: of the root; the groups in it that are dataclasses are closed.
        cfg: as composed, without Hydra's own part.

    Raises:
        UserError: a key that the schema does not know, a missing value, an interpolation that leads nowhere, a value
            out of its range.
    """
    register_resolver()
    _check_keys(cfg, schema)
    try:
        resolved = OmegaConf.to_object(cfg)
        assert isinstance(resolved, schema)
        resolved.check()
        return resolved
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key}: has no value. Give it one: {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        value = ""
        if isinstance(error, InterpolationResolutionError) and error.parent_node is not None:
            value = f"={error.parent_node._get_node(str(error.key))}"
        raise UserError(f"{error.full_key}{value}: {reason_of(error)}.") from error


def _check_keys(cfg: DictConfig, schema: type[Group]) -> None:
    """`+training.epoch=3` is composed without complaint, so the keys are compared with the schema's once more."""
    for group, dataclass in {"": schema, **closed_groups(schema)}.items():
        node = OmegaConf.select(cfg, group) if group else cfg
        known = [field.name for field in fields(dataclass)]
        for name in known:
            if name not in node:
                full_key = f"{group}.{name}" if group else name
                raise UserError(f"~{full_key}: can't be taken away. Set it to another value instead.")
        for key in node:
            if key not in known:
                full_key = f"{group}.{key!s}" if group else str(key)
                leaf, value = first_leaf(cfg, full_key)
                groups = keys_by_group(cfg)
                groups[group] = [each for each in groups[group] if each != key]
                groups.pop(full_key, None)
                raise UserError(unknown_key(leaf, value, known, groups))


def _refuse_no_option(hydra: Hydra, overrides: Sequence[str]) -> None:
    """Refuse a group that is set to something else than the names of its options: null, a number, an empty list.

    Hydra's own answer names no override, and an empty list takes the group away.
    """
    for override in map(parse, overrides):
        names = override.value if isinstance(override.value, list) else [override.value]
        no_name = not names or any(name is None or name == "" or isinstance(name, dict) for name in names)
        if override.parsed is None or override.is_swept or override.is_deletion or not no_name:
            continue
        if "." not in override.key and (options := hydra.config_loader.get_group_options(override.key)):
            known = ", ".join(options)
            raise UserError(f"{override.text}: a group takes the name of one of its options. Known options: {known}.")


def without_hydra(composed: DictConfig) -> DictConfig:
    """A copy of a composed configuration without Hydra's own part."""
    cfg = copy.deepcopy(composed)
    OmegaConf.set_readonly(cfg, False)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    OmegaConf.set_struct(cfg, True)
    return cfg


def run_hydra_main(arguments: Sequence[str], task: Any) -> None:
    """Let Hydra's own command line do what it does: help, --cfg, completion, sweeps."""
    import hydra

    register_schema()
    register_resolver()
    before, sys.argv = sys.argv, [sys.argv[0], *add_search_sweeper(arguments)]
    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=CONFIG_NAME)(task)()
    finally:
        sys.argv = before


def quoted(path: Path) -> str:
    """A path so that Hydra takes it as it is."""
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def hydra_value(composed: DictConfig, key: str) -> str:
    """A value of Hydra's own part of a composed configuration.

    Raises:
        UserError: an interpolation in it leads nowhere.
    """
    try:
        return str(OmegaConf.select(composed, key, throw_on_missing=True))
    except OmegaConfBaseException as error:
        raise UserError(f"{key}: {reason_of(error)}.") from error
