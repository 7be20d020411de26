"""From what was typed to a checked configuration, and every mistake in it to one clear line. Loads no torch."""

import copy
import difflib
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import setup_globals
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from hydra.types import RunMode
from hydra.version import setbase
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from laptime.config.schema import Config, check_ranges, closed_groups, register_schema
from laptime.config.typed import how_to_quote
from laptime.errors import UserError, printable
from laptime.record.renamed import RENAMED

CONFIG_NAME = "config"
_WHY_RENAMED = {
    "training.accumulate_grad_batches": "It splits the batch of a step; Lightning's key of that name multiplies it."
}
# Of what was typed so many characters are quoted.
_LONGEST_QUOTE = 200
_TYPE_WORDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "text"}


def config_dir() -> Path:
    """The folder conf/: inside the package in an installed wheel, at the top of the checkout otherwise."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


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
    search_path = create_config_search_path(str(conf or config_dir()))
    if extra_config_dir is not None:
        folder = Path(extra_config_dir).absolute()
        if not folder.is_dir():
            raise UserError(f"--config-dir {extra_config_dir}: there is no such folder.")
        _refuse_names_of_ours(f"--config-dir {extra_config_dir}", folder)
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


def _refuse_names_of_ours(typed: str, folder: Path) -> None:
    """Refuse a folder with an option that Laptime has under the same name: Hydra would take Laptime's."""
    ours = config_dir()
    if folder.resolve() == ours.resolve():
        return
    for path in sorted(ours.rglob("*.yaml")):
        name = path.relative_to(ours)
        if (folder / name).is_file():
            raise UserError(f"{typed}: {name} is one of Laptime's own files, which Hydra finds first. Rename yours.")


def find_own_classes(extra_config_dir: str | None) -> None:
    """Let classes of the user's own be imported from where the command was typed, and from beside the configuration.

    Args:
        extra_config_dir: of the flag --config-dir.
    """
    # Hydra looks for plugins now: later it would run what lies as hydra_plugins/ in the folders that are added.
    Plugins.instance()
    sys.path += [str(Path(folder).absolute()) for folder in (extra_config_dir, ".") if folder is not None]


def compose(hydra: Hydra, overrides: Sequence[str], config_name: str | None = None) -> DictConfig:
    """Compose what one run would get, Hydra's own part (`hydra`) included.

    Raises:
        UserError: unknown option or key, wrong type, bad syntax: one line.
    """
    name = config_name or CONFIG_NAME
    without_key = next((each for each in overrides if each.strip() in ("", "=")), None)
    if without_key is not None:
        raise UserError(f"'{printable(without_key)}': names no key. Use group=option or key=value.")
    with_null = next((each for each in overrides if "\0" in each), None)
    if with_null is not None:  # no command line can hold it, but a list in Python can
        raise UserError(f"'{printable(with_null)}': holds a null character. Leave it out.")
    for override in overrides:
        if key_of(override) in ("hydra", "hydra.run", "hydra.sweep"):
            raise UserError(f"{override}: sets several keys at once. Write each by itself: {key_of(override)}.dir=...")
    overrides = with_its_sweeper(overrides)
    _refuse_no_option(hydra, overrides)
    try:
        return _composed(hydra, name, overrides)
    except UserError:
        raise
    except Exception as error:  # of many kinds, ANTLR's and Python's own among them
        message = tidy(_explain(hydra, overrides, name, error), overrides)
        raise UserError(_with_its_override(hydra, overrides, name, message)) from error


def _composed(hydra: Hydra, name: str, overrides: Sequence[str], mode: RunMode = RunMode.RUN) -> DictConfig:
    """What Hydra composes; it warns of a folder of `hydra.searchpath` that is missing, which is an error here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", r".*path=.* is not\s+available", UserWarning)
        composed = hydra.compose_config(name, list(overrides), run_mode=mode, with_log_configuration=False)
    for place in composed.hydra.searchpath:
        if (folder := Path(str(place).removeprefix("file://"))).is_dir():
            _refuse_names_of_ours(f"hydra.searchpath=[{place}]", folder)
    return composed


def experiment_of(composed: DictConfig) -> str | None:
    """The option of the group experiment that a configuration was composed with; of several, all: `one+other`."""
    chosen = composed.hydra.runtime.choices.get("experiment")
    if chosen is None:
        typed = [each.partition("=")[2] for each in composed.hydra.overrides.task if key_of(each) == "experiment"]
        chosen = "+".join(part.strip() for part in typed[-1].strip("[]").split(",")) if typed else None
    return None if chosen is None else str(chosen)


def sweeps_without_flag(hydra: Hydra, overrides: Sequence[str], config_name: str) -> bool:
    """Whether a configuration stands for a sweep though -m was not typed, as Hydra asks: whatever is swept over."""
    try:
        cfg = _composed(hydra, config_name, with_its_sweeper(overrides), RunMode.MULTIRUN)
    except Exception:  # whoever composes it for its own sake says what is wrong
        return False
    return bool(cfg.hydra.mode == RunMode.MULTIRUN)


def with_its_sweeper(overrides: Sequence[str]) -> list[str]:
    """What was typed, and the sweeper that a `search` needs: a file can't choose one, conf/config.yaml has done so."""
    chosen = {key_of(override): override.partition("=")[2] for override in overrides}
    if chosen.get("search", "null") in ("null", "") or "hydra/sweeper" in chosen:
        return list(overrides)
    return [*overrides, "hydra/sweeper=optuna"]


# Where an option of Hydra's own groups comes from.
_EXTRAS = {
    "hydra/launcher=joblib": "joblib",
    "hydra/launcher=submitit_local": "submitit",
    "hydra/launcher=submitit_slurm": "submitit",
    "hydra/sweeper=optuna": "search",
}


def resolve(cfg: DictConfig, schema: Mapping[str, type] | None = None) -> dict[str, Any]:
    """Check types, ranges and keys of a composed configuration and resolve it.

    Args:
        cfg: as composed, without Hydra's own part.
        schema: its closed groups by name, each with its dataclass, the root as ""; None: those of a run.

    Returns:
        Plain dicts, lists, numbers, strings and None.

    Raises:
        UserError: a key that the schema does not know, a missing value, an interpolation that leads nowhere, a value
            out of its range.
    """
    _check_keys(cfg, schema or {"": Config, **closed_groups()})
    try:
        check_ranges(cfg)
        resolved = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key}: has no value. Give it one: {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        value = ""
        if isinstance(error, InterpolationResolutionError) and error.parent_node is not None:
            value = f"={error.parent_node._get_node(str(error.key))}"
        raise UserError(f"{error.full_key}{value}: {_first_line(error)}.") from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def tidy(message: str, typed: Sequence[str]) -> str:
    """A message of one or two lines, whatever was typed: what it quotes is shortened, and shows what can't be seen.

    Args:
        message: of a UserError.
        typed: the overrides that it may quote.
    """
    for override in typed:
        value = override.partition("=")[2]
        for text in sorted({override, value, key_of(override)}, key=len, reverse=True):
            if text and text != (shown := _shown(text)):
                message = message.replace(text, shown)
    lines = [printable(line) for line in message.splitlines()] or [""]
    return "\n".join([lines[0], " ".join(lines[1:])]).strip()


def _shown(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…"


def _with_its_override(hydra: Hydra, overrides: list[str], config_name: str, message: str) -> str:
    """The message, with the override that it speaks of if it doesn't name it: the one without which all is well."""
    if any(key and _shown(key) in message for key in [*map(_last_name, overrides), *overrides]):
        return message
    for culprit in overrides:
        try:
            rest = [override for override in overrides if override is not culprit]
            _composed(hydra, config_name, rest)
        except Exception:
            continue
        return f"{_shown(culprit)}: {message.lstrip(': ')}"
    return f"{_shown(' '.join(overrides))}: {message.lstrip(': ')}"


def key_of(override: str) -> str:
    """The key that an override sets: `training.epochs` of `+training.epochs=3`."""
    return override.lstrip("+~").partition("=")[0]


def _last_name(override: str) -> str:
    """The last part of an override's key: `epochs` of `+training.epochs=3`."""
    return key_of(override).partition("@")[0].rpartition(".")[2].rpartition("/")[2].strip("'\" ")


def _check_keys(cfg: DictConfig, schema: Mapping[str, type]) -> None:
    """`+training.epoch=3` is composed without complaint, so the keys are compared with the schema's once more."""
    for group, dataclass in schema.items():
        node = OmegaConf.select(cfg, group) if group else cfg
        known = [field.name for field in fields(dataclass)]
        for name in known:
            if name not in node:
                full_key = f"{group}.{name}" if group else name
                raise UserError(f"~{full_key}: can't be taken away. Set it to another value instead.")
        for key in node:
            if key not in known:
                full_key = f"{group}.{key!s}" if group else str(key)
                value = node._get_node(key)  # as it stands there: it may be missing, or lead nowhere
                raise UserError(_unknown_key(full_key, f"={value!s}", known))


def _unknown_key(full_key: str, value: str, known: Sequence[str]) -> str:
    if full_key in RENAMED:
        new = RENAMED[full_key]
        return f"{full_key}{value}: is called {new} now. {_WHY_RENAMED[full_key]} Write {new}{value}."
    parent, _, key = full_key.rpartition(".")
    prefix = f"{parent}." if parent else ""
    close = difflib.get_close_matches(key, known, n=1)
    hint = f" Did you mean {prefix}{close[0]}?" if close else ""
    return f"{full_key}{value}: unknown key.{hint}\nKnown keys{parent and ' of ' + parent}: {', '.join(known)}."


def _refuse_no_option(hydra: Hydra, overrides: Sequence[str]) -> None:
    """Refuse a group that is set to something else than the names of its options: null, a number, an empty list.

    Hydra's own answer names no override, and an empty list takes the group away.
    """
    for override in overrides:
        group = key_of(override).partition("@")[0]
        value = override.partition("=")[2].strip()
        names = value.strip("[]").split(",") if value.startswith("[") else [value]
        if override.startswith("~") or not any(name.strip() in ("", "null") or name.startswith("{") for name in names):
            continue
        if "." not in group and "=" in override and (options := hydra.config_loader.get_group_options(group)):
            known = ", ".join(options)
            raise UserError(f"{override}: a group takes the name of one of its options. Known options: {known}.")


def _explain(hydra: Hydra, overrides: list[str], config_name: str, error: Exception) -> str:
    cause = error.__cause__ or error
    if isinstance(error, MissingConfigException):
        return _explain_missing_option(hydra, error)
    if isinstance(error, OverrideParseException):
        if "=" not in str(error.override).strip("="):
            return f"{error.override}: not understood. Use group=option or key=value."
        return f"{error.override}: not understood. {how_to_quote(str(error.override))}"
    if isinstance(error, UserWarning):
        folder = str(error).partition("path=")[2].removesuffix(" is not available.")
        return f"hydra.searchpath: there is no such folder: {folder}."
    if "Could not delete" in str(error):
        return _explain_not_deleted(str(error), overrides)
    typed = _override_of(str(error), overrides)
    if typed is not None and "@" in typed.partition("=")[0] and isinstance(error, ConfigCompositionException):
        group = key_of(typed).partition("@")[0]
        value = typed.partition("=")[2]
        return f"{typed}: no option of {group} is placed there. Without @: {group}={value}."
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and typed is not None:
        return _explain_unknown_key(hydra, overrides, config_name, typed, cause)
    if isinstance(cause, ValidationError) and typed is not None:
        return f"{typed}: {_wrong_type(cause)}."
    if typed is not None:
        return f"{typed}: {_first_line(cause)}."
    place = re.match(r"In '([^']*)': ", str(error))
    if place is not None and isinstance(error.__context__, OmegaConfBaseException):
        return f"{place[1]}.yaml: {_explain_in_a_file(error.__context__)}"
    if "An item is already at" in str(error):
        return f"+{_quoted(str(error))}: the key is there already. Leave out the +."
    if "Multiple values for" in str(error):
        typed = next((o for o in overrides if o.startswith("+")), str(error).splitlines()[0])
        return f"{typed}: the group is there already. Leave out the +."
    if "Ambiguous value" in str(error):
        return f"{_quoted(str(error))}: several values. To sweep over them, add -m; for a list, write [a,b]."
    return _first_line(cause) + "."


def _explain_in_a_file(error: OmegaConfBaseException) -> str:
    """What is wrong with a key that a configuration file holds."""
    full_key = str(error.full_key)
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        group = closed_groups().get(full_key.rpartition(".")[0])
        return _unknown_key(full_key, "", [field.name for field in fields(group or Config)])
    if isinstance(error, ValidationError):
        return f"{full_key}: {_wrong_type(error)}."
    return f"{full_key}: {_first_line(error)}."


def hydra_groups(hydra: Hydra) -> list[str]:
    """The config groups by name."""
    return [str(name) for name in hydra.config_loader.list_groups("")]


def _explain_missing_option(hydra: Hydra, error: MissingConfigException) -> str:
    group, _, option = str(error.missing_cfg_file or "").rpartition("/")
    if not group:
        return _first_line(error) + "."
    if (extra := _EXTRAS.get(f"{group}={option}")) is not None:
        return f'{group}={option}: is not installed. Install it: pip install "laptime[{extra}]".'
    # Of several options at once Hydra does not say which there are.
    options = ", ".join(error.options or hydra.config_loader.get_group_options(group))
    return f"{group}={option}: no such option. Known options of {group}: {options}."


def _explain_not_deleted(message: str, overrides: Sequence[str]) -> str:
    """What to do instead of `~key`, from Hydra's words about it."""
    key = _quoted(message).partition("=")[0]
    typed = next((each for each in overrides if each.startswith("~") and key_of(each) == key), f"~{key}")
    if "does not exist" in message:
        return f"{typed}: there is no such key, or it is null already. Leave it out."
    if "and not" in message:
        return f"{typed}: the key has another value. Without a value it is deleted whatever it is: ~{key}."
    return f"{typed}: the defaults list has no such entry, as a whole. Delete one that it has: ~{key} or ~{key}.NAME."


def _explain_unknown_key(
    hydra: Hydra, overrides: list[str], config_name: str, typed: str, error: OmegaConfBaseException
) -> str:
    full_key = str(error.full_key)
    value = f"={typed.partition('=')[2]}" if "=" in typed else ""
    rest = [override for override in overrides if override != typed]
    cfg = compose(hydra, rest, config_name)
    parent = full_key.rpartition(".")[0]
    node = OmegaConf.select(cfg, parent) if parent else cfg
    known = [str(key) for key in node if key != "hydra"] if isinstance(node, DictConfig) else []
    return _unknown_key(full_key, value, known)


def _override_of(message: str, overrides: list[str]) -> str | None:
    """The override that Hydra's message speaks of."""
    match = re.match(r"Could not override '(.*)'|Error merging override (.*)", message)
    if match is None:
        return None
    named = match[1] or match[2]
    return next((o for o in overrides if o == named or key_of(o) == named), named)


def _wrong_type(error: ValidationError) -> str:
    message = _first_line(error)
    for omegaconf_name, words in _TYPE_WORDS.items():
        if message.endswith(f"could not be converted to {omegaconf_name}"):
            return f"must be {words}"
    if "is not a valid bool" in message:
        return "must be true or false"
    if message.endswith("is not Optional"):
        return "must not be null"
    if message.endswith("is not a ListConfig, list or tuple"):
        return "must be a list: [value], and 'key=[value]' in quotes where the shell knows brackets"
    if "incompatible with type hint 'Union[int, str]'" in message:
        return "must be a whole number or auto"
    return message


def _quoted(message: str) -> str:
    match = re.search(r"'(.*)'", message)
    return match[1] if match else message


def _first_line(error: BaseException, skip: str = "\0") -> str:
    if "HydraConfig was not set" in str(error):
        return "${hydra:...} isn't known before the run starts. Write an absolute path, or ${oc.env:PWD}/..."
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith(skip)]
    return lines[0].rstrip(".") if lines else type(error).__name__


def without_hydra(composed: DictConfig) -> DictConfig:
    """A copy of a composed configuration without Hydra's own part."""
    cfg = copy.deepcopy(composed)
    OmegaConf.set_readonly(cfg, False)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    OmegaConf.set_struct(cfg, True)
    return cfg


def hand_over_to_hydra(arguments: Sequence[str], task: Any) -> None:
    """Let Hydra's own command line do what it does: help, --cfg, completion, sweeps."""
    import hydra

    register_schema()
    before, sys.argv = sys.argv, [sys.argv[0], *with_its_sweeper(arguments)]
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
        raise UserError(f"{key}: {_first_line(error)}.") from error
