"""Composes the overrides of a command line to a checked configuration. Each mistake is one line. Loads no torch."""

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, cast

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

from laptime.config import own_task, vouching
from laptime.config.composition import ConfigFiles, compose_with_hydra, config_dir, refuse_name_clashes
from laptime.config.explain import (
    explain,
    first_leaf,
    keys_by_group,
    name_override,
    reason_of,
    shorten_quotes,
    unknown_key,
    with_other_foreign_keys,
)
from laptime.config.overrides import clear_parse_cache, find, find_last, key_of, parse
from laptime.config.quoting import GROUPS_WITH_NONE
from laptime.config.run_values import register_resolver
from laptime.config.schema import Config, Group, closed_groups, register_schema
from laptime.errors import UserError
from laptime.record.files import flat
from laptime.text import escape_control_chars

CONFIG_NAME = "config"

Schema = TypeVar("Schema", bound=Group)


@contextmanager
def hydra_session(extra_config_dir: str | None = None, conf: Path | None = None) -> Iterator[Hydra]:
    """A Hydra that finds Laptime's configuration. The caller's own Hydra is restored afterwards.

    Args:
        extra_config_dir: the value of --config-dir: a folder to search in addition to conf/.
        conf: a folder to search instead of conf/.
    """
    backup = get_gh_backup()
    setbase("1.3")
    setup_globals()
    register_schema()
    register_resolver()
    search_path = create_config_search_path(str(conf or config_dir()))
    if extra_config_dir is not None:
        folder = _require_folder(extra_config_dir)
        refuse_name_clashes(f"--config-dir {extra_config_dir}", folder)
        search_path.prepend("command-line", f"file://{folder}", anchor=SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    # `${hydra:...}` would otherwise use the settings of an earlier run of this process.
    earlier_cfg, HydraConfig.instance().cfg = HydraConfig.instance().cfg, None
    try:
        hydra = Hydra.create_main_hydra2(task_name="train", config_search_path=search_path)
        hydra.config_loader.repository = ConfigFiles(search_path)  # type: ignore[attr-defined]
        yield hydra
    finally:
        GlobalHydra.instance().clear()
        HydraConfig.instance().cfg = earlier_cfg
        restore_gh_from_backup(backup)
        clear_parse_cache()


def add_user_modules(extra_config_dir: str | None) -> None:
    """Let the user's own modules be imported from the folder of --config-dir and from the current folder.

    The folder of --config-dir vouches for its modules (laptime.config.vouching), the current folder does not.

    Args:
        extra_config_dir: the value of --config-dir on this command line.

    Raises:
        UserError: --config-dir names no folder.
    """
    folder = None if extra_config_dir is None else _require_folder(extra_config_dir)
    # Hydra searches for plugins now. Later it would run a hydra_plugins/ in the folders that are added.
    Plugins.instance()
    vouching.vouch_for(folder)
    sys.path += [str(path) for path in (folder, Path.cwd()) if path is not None]


def _require_folder(extra_config_dir: str) -> Path:
    """The absolute path that --config-dir names. An empty text, e.g. of an unset shell variable, is no name."""
    if not extra_config_dir:
        raise UserError("--config-dir: must not be empty. Give a folder, or leave the option out.")
    folder = Path(extra_config_dir).absolute()
    if not folder.is_dir():
        raise UserError(f"--config-dir {extra_config_dir}: there is no such folder.")
    return folder


def compose(hydra: Hydra, overrides: Sequence[str], config_name: str | None = None) -> DictConfig:
    """Compose the configuration of one run, including Hydra's own part (`hydra`).

    Raises:
        UserError: an unknown option or key, a wrong type, or bad syntax.
    """
    name = config_name or CONFIG_NAME
    without_key = next((override for override in overrides if not key_of(override).strip()), None)
    if without_key is not None:
        raise UserError(
            f"'{escape_control_chars(without_key)}': has no key. Use group=option or key=value, no spaces around =."
        )
    with_null = next((override for override in overrides if "\0" in override), None)
    if with_null is not None:  # possible in laptime.run([...]) only
        raise UserError(f"'{escape_control_chars(with_null)}': contains a null character. Remove it.")
    for override in overrides:
        if key_of(override) in ("hydra", "hydra.run", "hydra.sweep"):
            raise UserError(f"{override}: sets several keys. Set each by itself: {key_of(override)}.dir=...")
    own_task.refuse_typed(overrides)
    overrides = add_search_sweeper(overrides)
    _refuse_no_option(hydra, overrides, name)
    try:
        return compose_with_hydra(hydra, name, overrides)
    except UserError:
        raise
    except Exception as error:  # of many classes, also ANTLR's and Python's
        message = shorten_quotes(explain(hydra, overrides, name, error), overrides)
        message = name_override(hydra, overrides, name, message)
        raise UserError(with_other_foreign_keys(hydra, overrides, name, error, message)) from error


def experiment_of(composed: DictConfig) -> str | None:
    """The chosen option of the group `experiment`, or several as `one+other`."""
    chosen = composed.hydra.runtime.choices.get("experiment")
    if chosen is None:
        override = find_last(list(composed.hydra.overrides.task), "experiment")
        value = None if override is None else override.value
        chosen = "+".join(map(str, value)) if isinstance(value, list) else value
    return None if chosen in (None, "none") else str(chosen)


def is_sweep_without_flag(hydra: Hydra, overrides: Sequence[str], config_name: str, error: UserError) -> bool:
    """Whether a configuration makes a sweep without -m, because it sets `hydra.mode`.

    Args:
        error: why it can't be composed as a single run.
    """
    # In a sweep Hydra also accepts several values, and a group that has no option yet. Other errors stay.
    if not any(item.is_swept for item in map(parse, overrides)) and "You must specify" not in str(error.__cause__):
        return False
    try:
        cfg = compose_with_hydra(hydra, config_name, add_search_sweeper(overrides), RunMode.MULTIRUN)
    except Exception:  # the caller composes it again and reports the error
        return False
    return bool(cfg.hydra.mode == RunMode.MULTIRUN)


def add_search_sweeper(overrides: Sequence[str]) -> list[str]:
    """Add the sweeper that a `search` needs. Its file can't choose it, because conf/config.yaml already does."""
    search = find_last(overrides, "search")
    if (
        search is None
        or (not search.is_swept and search.value in (None, "", "none"))
        or find(overrides, "hydra/sweeper") is not None
    ):
        return list(overrides)
    return [*overrides, "hydra/sweeper=optuna"]


def resolve(cfg: DictConfig) -> Config:
    """Check and resolve the composed configuration of a run: see `resolve_as`.

    `${laptime:run_dir}` is a placeholder, unless `laptime.config.run_values.known_run` has named the run.
    """
    config = resolve_as(Config, cfg)
    if config.training.max_steps is not None:
        _refuse_number_of_epochs(cfg)
    return config


def _refuse_number_of_epochs(cfg: DictConfig) -> None:
    """Refuse values that are computed from training.epochs, which is not the length of the training."""
    for key, value in flat(cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=False))):
        if isinstance(value, str) and "training.epochs}" in value:
            raise UserError(
                f"{key}={value}: training.epochs has no effect with training.max_steps={cfg.training.max_steps}. Use "
                "${laptime:num_laps}, the number of laps."
            )


def resolve_as(schema: type[Schema], cfg: DictConfig) -> Schema:
    """Check types, ranges and keys of a composed configuration and resolve it.

    Args:
        schema: dataclass of the root. Groups in it that are dataclasses are closed.
        cfg: composed, without Hydra's own part.

    Raises:
        UserError: an unknown key, a missing value, an interpolation that can't be resolved, a value out of its range.
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
    """Refuse keys that the schema does not have: Hydra accepts `+training.epoch=3`."""
    for group, dataclass in {"": schema, **closed_groups(schema)}.items():
        node = OmegaConf.select(cfg, group) if group else cfg
        keys = [field.name for field in fields(dataclass)]
        for name in keys:
            if name not in node:
                full_key = f"{group}.{name}" if group else name
                raise UserError(f"~{full_key}: can't be removed. Set it to another value instead.")
        for key in node:
            if key not in keys:
                full_key = f"{group}.{key!s}" if group else str(key)
                leaf, value = first_leaf(cfg, full_key)
                groups = keys_by_group(cfg)
                groups[group] = [name for name in groups[group] if name != key]
                groups.pop(full_key, None)
                raise UserError(unknown_key(leaf, value, keys, groups))


def _refuse_no_option(hydra: Hydra, overrides: Sequence[str], config_name: str) -> None:
    """Refuse a group whose value is not the name of an option: null, a mapping, an empty list, none beside another.

    Hydra's message does not name the override, and an empty list would remove the group.
    """
    for override in map(parse, overrides):
        names = override.value if isinstance(override.value, list) else [override.value]
        no_name = not names or any(name is None or name == "" or isinstance(name, dict) for name in names)
        has_none = override.key in GROUPS_WITH_NONE and len(names) > 1 and bool({None, "none"} & set(names))
        is_wrong = no_name or has_none or override.prefix == "++"
        if override.parsed is None or override.is_swept or override.is_deletion or not is_wrong:
            continue
        if "." in override.key or not (options := hydra.config_loader.get_group_options(override.key)):
            continue
        if override.prefix == "++":
            raise UserError(f"{override.text}: ++ sets a key, not the option of a group. Leave out the ++.")
        if override.is_addition and override.key in GROUPS_WITH_NONE and config_name == CONFIG_NAME:
            raise UserError(f"{override.text}: the group exists already. Leave out the +.")
        if has_none:
            raise UserError(f"{override.text}: none can't be combined with another option. Leave it out.")
        raise UserError(f"{override.text}: must be the name of an option. Known options: {', '.join(options)}.")


def without_hydra(composed: DictConfig) -> DictConfig:
    """A copy of a composed configuration without Hydra's own part."""
    cfg = copy.deepcopy(composed)
    OmegaConf.set_readonly(cfg, False)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    OmegaConf.set_struct(cfg, True)
    return cfg


def hydra_value(composed: DictConfig, key: str) -> str:
    """A value of Hydra's own part of a composed configuration.

    Raises:
        UserError: an interpolation in it can't be resolved.
    """
    try:
        return str(OmegaConf.select(composed, key, throw_on_missing=True))
    except OmegaConfBaseException as error:
        raise UserError(f"{key}: {reason_of(error)}.") from error
