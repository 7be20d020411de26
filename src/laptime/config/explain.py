"""Turns errors of Hydra and OmegaConf into one line about the override or the key of a file that caused them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, cast

from hydra._internal.hydra import Hydra
from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException, ValidationError

from laptime import suggest
from laptime.config import foreign_answers, vouching
from laptime.config.composition import compose_with_hydra
from laptime.config.library_models import library_of
from laptime.config.overrides import Override, find_last, key_of, parse
from laptime.config.quoting import how_to_quote
from laptime.config.refused import compose_the_rest, defaults, override_of, quoted_in
from laptime.config.schema import Config, closed_groups
from laptime.errors import first_line
from laptime.extras import install_command
from laptime.record.files import flat
from laptime.record.renamed import RENAMED
from laptime.text import escape_control_chars

_WHY_RENAMED = {
    "training.accumulate_grad_batches": "It splits the batch of a step; Lightning's key multiplies it.",
    "scheduler.warmup_share": "It is a fraction of all steps.",
}

# Values that Laptime sets when a run starts, and what to type instead.
_SET_BY_THE_RUN = {
    "run_dir": "Choose the directory with hydra.run.dir=...",
    "run_label": "Laptime makes the label from the swept values. Choose the directory with hydra.run.dir=...",
    "experiment_name": "Choose an experiment with experiment=...",
    "runs_at_once": "hydra/launcher=joblib runs several jobs concurrently.",
}
# Names of keys that say nothing about what is meant.
_GENERIC_NAMES = ("name", "type", "mode")

# Maximum number of characters of an override that a message quotes.
_LONGEST_QUOTE = 200
_TYPE_WORDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "text"}
# The packages of options in Hydra's own groups.
_PLUGINS = {
    "hydra/launcher=joblib": "hydra_joblib_launcher",
    "hydra/launcher=submitit_local": "hydra_submitit_launcher",
    "hydra/launcher=submitit_slurm": "hydra_submitit_launcher",
    "hydra/sweeper=optuna": "hydra_optuna_sweeper",
}


def shorten_quotes(message: str, overrides: Sequence[str]) -> str:
    """A message in at most two lines, with long overrides shortened and control characters escaped.

    Args:
        message: the text of a UserError.
        overrides: those that the message may quote.
    """
    for override in map(parse, overrides):
        for text in sorted({override.text, override.value_text or "", override.full_key}, key=len, reverse=True):
            if text and text != (shown := _shown(text)):
                message = message.replace(text, shown)
    lines = [escape_control_chars(line) for line in message.splitlines()] or [""]
    return "\n".join([lines[0], " ".join(lines[1:])]).strip()


def _shown(text: str) -> str:
    text = escape_control_chars(text)
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…"


def name_override(hydra: Hydra, overrides: list[str], config_name: str, message: str) -> str:
    """A message that names an override. If it names none, add the one without which composing succeeds."""
    if not overrides or message.startswith("--"):
        return message.lstrip(": ")
    if any(key and _shown(key) in message for key in [*map(_last_name, overrides), *overrides]):
        return message
    for culprit in overrides:
        try:
            rest = [override for override in overrides if override is not culprit]
            compose_with_hydra(hydra, config_name, rest)
        except Exception:
            continue
        return f"{_shown(culprit)}: {message.lstrip(': ')}"
    return f"{_shown(' '.join(overrides))}: {message.lstrip(': ')}"


def _last_name(override: str) -> str:
    """The last part of an override's key: `epochs` of `+training.epochs=3`."""
    return key_of(override).rpartition(".")[2].rpartition("/")[2].strip("'\" ")


# Keys of data sets of images that other data sets lack.
_AUGMENTATION = ("dataset.horizontal_flip", "dataset.rotation_degrees")


def unknown_key(
    full_key: str,
    value: str | None,
    known_keys: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    text: str = "",
    verb: str = "Type",
) -> str:
    """The message about a key that its group does not have: another tool's, an older Laptime's, or a mistyped one.

    Args:
        full_key: the whole key, also what follows the unknown part.
        value: as typed; None: there is none.
        known_keys: the keys of the innermost existing group.
        groups: see `keys_by_group`, without the unknown key.
        text: the override; "": the key is from a file, or was added with +.
        verb: see `foreign_answers.answer`.
    """
    text = text or (full_key if value is None else f"{full_key}={value}")
    equals = "" if value is None else f"={value}"
    new = RENAMED.get(full_key)
    if new is not None and new.rpartition(".")[2] in known_keys:
        return renamed_key(full_key, equals, text)
    if full_key in _SET_BY_THE_RUN:
        return f"{text}: can't be set, because Laptime sets it when the run starts. {_SET_BY_THE_RUN[full_key]}"
    if full_key in _AUGMENTATION and "context_length" in known_keys:
        return f"{text}: augments images, but dataset=text has none. Leave it out."
    if (answer := foreign_answers.answer(text, full_key, value, groups, verb)) is not None:
        return answer
    names = full_key.split(".")
    depth = next((n for n in range(len(names) - 1, -1, -1) if ".".join(names[:n]) in groups), len(names) - 1)
    group, rest = ".".join(names[:depth]), ".".join(names[depth + 1 :])
    near = suggest.closest(names[depth], known_keys, 0.6 if depth else 0.75)
    elsewhere = [
        f"{other}.{names[-1]}"
        for other, keys in groups.items()
        if other and names[-1] in keys and names[-1] not in _GENERIC_NAMES
    ]
    if not elsewhere and len(names) == 1:
        full_keys = {
            key: f"{other}.{key}"
            for other, keys in groups.items()
            for key in keys
            if other and key not in _GENERIC_NAMES
        }
        elsewhere = [full_keys[key] for key in [suggest.closest(full_key, full_keys, 0.8)] if key is not None]
    options = [f"{group}.{near}".strip(".") + (f".{rest}" if rest else "")] if near else elsewhere[:3]
    hint = f" Did you mean {' or '.join(options)}?" if options else ""
    return f"{text}: unknown key.{hint}\nKnown keys{group and ' of ' + group}: {suggest.listed(known_keys)}."


def renamed_key(old: str, equals: str, text: str) -> str:
    """The message about a key that has a new name.

    Args:
        equals: = and the value; "": there is none.
        text: the override, or the key as a file has it.
    """
    return f"{text}: was renamed to {RENAMED[old]}. {_WHY_RENAMED[old]} Write {RENAMED[old]}{equals}."


def keys_by_group(cfg: DictConfig) -> dict[str, list[str]]:
    """The keys of each group of a configuration, by its full name: "" is the root. Hydra's own part is left out."""
    groups = {"": [str(key) for key in cfg if key != "hydra"]}
    for name in groups[""]:
        node = cfg._get_node(name)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            groups[name] = [str(key) for key in node if not str(key).startswith("_")]
    return groups


def _default_keys(hydra: Hydra, config_name: str) -> dict[str, list[str]]:
    """The keys of each group of the configuration without any override: see `keys_by_group`."""
    return keys_by_group(defaults(hydra, config_name))


def explain(hydra: Hydra, overrides: list[str], config_name: str, error: Exception) -> str:
    cause = error.__cause__ or error
    if isinstance(error, MissingConfigException):
        return _explain_missing_option(hydra, overrides, config_name, error)
    if isinstance(error, OverrideParseException):
        word = str(error.override)
        if foreign_answers.may_answer(word) and (
            answer := foreign_answers.answer(word, word, None, _default_keys(hydra, config_name))
        ):
            return answer
        if "=" not in word.strip("="):
            return f"{word}: must be an override, group=option or key=value."
        return f"{word}: not understood. {how_to_quote(word)}"
    if isinstance(error, UserWarning):
        folder = str(error).partition("path=")[2].removesuffix(" is not available.")
        return f"hydra.searchpath: there is no such folder: {folder}."
    if "Could not delete" in str(error):
        return _explain_not_deleted(hydra, str(error), overrides, config_name)
    if "looks like a config group override" in str(error):
        return _explain_unknown_group(hydra, overrides, config_name, str(error))
    override = override_of(str(error), overrides)
    if override is not None and override.package is not None and isinstance(error, ConfigCompositionException):
        without = f"{override.key}={override.value_text or ''}"
        return f"{override.text}: {override.key} is not used in that package. Write it without @: {without}."
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and override is not None:
        return _explain_unknown_key(hydra, overrides, config_name, override, error)
    if override is not None and "No match in the defaults list" in str(error):
        to_type = f"+{override.full_key}={override.value_text or ''}"
        return f"{override.text}: the defaults list has no {override.full_key}. To append it, type {to_type}."
    if isinstance(cause, ValidationError) and override is not None:
        return f"{override.text}: {_wrong_type(cause)}."
    if override is not None:
        return f"{override.text}: {reason_of(cause)}."
    place = re.match(r"In '([^']*)': ", str(error))
    missing = re.search(r"Could not override '([^'@]*)[^']*'\. No match in the defaults list", str(error))
    if place is not None and missing is not None:
        cfg = defaults(hydra, config_name)
        message = unknown_key(missing[1], None, list(cfg), keys_by_group(cfg), verb="Use")
        return f"{place[1]}.yaml: {message}"
    if place is not None and isinstance(error.__context__, OmegaConfBaseException):
        return f"{place[1]}.yaml: {_explain_in_a_file(hydra, config_name, place[1], error.__context__)}"
    if "An item is already at" in str(error):
        return f"+{quoted_in(str(error))}: the key exists already. Leave out the +."
    if "Multiple values for" in str(error) or "appears more than once in the final defaults list" in str(error):
        added = next((text for text in overrides if parse(text).is_addition), str(error).splitlines()[0])
        return f"{added}: the group exists already. Leave out the +."
    if "Ambiguous value" in str(error):
        swept = parse(quoted_in(str(error)))
        if foreign_answers.may_answer(swept.full_key):
            groups = _default_keys(hydra, config_name)
            if swept.key.partition(".")[0] not in groups[""] and (
                answer := foreign_answers.answer(swept.text, swept.full_key, swept.value_text, groups)
            ):
                return answer
        return f"{quoted_in(str(error))}: has several values. Add -m to sweep over them, or write [a,b] for a list."
    return reason_of(cause) + "."


def _explain_in_a_file(hydra: Hydra, config_name: str, name: str, error: OmegaConfBaseException) -> str:
    """The message about a key in a configuration file."""
    full_key = str(error.full_key)
    if isinstance(error, ConfigAttributeError | ConfigKeyError):
        group = closed_groups().get(full_key.rpartition(".")[0])
        known_keys = [field.name for field in fields(group or Config)]
        leaf, value = first_leaf(_content_of(hydra, name), full_key)
        return unknown_key(leaf, value, known_keys, _default_keys(hydra, config_name), verb="Use")
    if isinstance(error, ValidationError):
        return f"{full_key}: {_wrong_type(error)}."
    return f"{full_key}: {reason_of(error)}."


def _content_of(hydra: Hydra, name: str) -> DictConfig | None:
    """The content of a configuration file; None: it is not a mapping."""
    loaded = hydra.config_loader.repository.load_config(name)  # type: ignore[attr-defined]
    return loaded.config if loaded is not None and isinstance(loaded.config, DictConfig) else None


def first_leaf(cfg: DictConfig | None, key: str) -> tuple[str, str | None]:
    """The first value at a key or below it: its full key, and the value as it is typed; None: there is none."""
    plain = None if cfg is None else OmegaConf.to_container(cfg, resolve=False)
    for name, value in flat(cast(dict[str, Any], plain)) if isinstance(plain, dict) else ():
        if name == key or name.startswith(f"{key}."):
            return name, _as_typed(value)
    return key, None


def _as_typed(value: Any) -> str:
    """A plain value as Hydra's grammar takes it."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


def _explain_missing_option(
    hydra: Hydra, overrides: Sequence[str], config_name: str, error: MissingConfigException
) -> str:
    group, _, option = str(error.missing_cfg_file or "").rpartition("/")
    if not group:
        if option.removesuffix(".yaml") == config_name.removesuffix(".yaml"):
            return (
                f"--config-name={config_name}: there is no such file in conf/ or in the folder of --config-dir. "
                "Leave the option out, or add --config-dir FOLDER."
            )
        return reason_of(error) + "."
    if (plugin := _PLUGINS.get(f"{group}={option}")) is not None:
        return f"{group}={option}: needs {plugin}, which is not installed. Install it: {install_command(plugin)}."
    # Where several options are chosen together, Hydra does not list those that there are.
    options = error.options or hydra.config_loader.get_group_options(group)
    if not options:
        cfg = defaults(hydra, config_name)
        return unknown_key(group, option, list(cfg), keys_by_group(cfg))
    override = find_last(overrides, group)
    override_text = f"{group}={option}" if override is None else override.text
    value = None if override is None else override.value_text
    if (answer := foreign_answers.answer_option(override_text, group, value or option, options)) is not None:
        return answer
    library = library_of(option.lower()) if group == "model" else None
    hint = suggest.did_you_mean(option, options, prefix=f"{group}=")
    if library is not None:
        hint = f"Type model={library} model.name={option.lower()}."
    elif not hint and vouching.state().folder is None:
        hint = "If it is your own, add the folder that has it: --config-dir FOLDER."
    listed = f"Known options of {group}: {suggest.listed(options)}."
    return " ".join(filter(None, [f"{group}={option}: no such option.", hint, listed]))


def with_other_foreign_keys(
    hydra: Hydra, overrides: Sequence[str], config_name: str, error: Exception, message: str
) -> str:
    """A message about a key of another tool, with a line about each of the others that were typed.

    Args:
        error: Hydra's error, which the message explains.
    """
    if sum(foreign_answers.may_answer(item.full_key) for item in map(parse, overrides)) < 2:
        return message
    cfg, refused = compose_the_rest(hydra, overrides, config_name, error)
    groups = keys_by_group(cfg)
    answers = [
        foreign_answers.answer(item.text, item.full_key, item.value_text, groups, "" if item.is_deletion else "Type")
        for item in map(parse, refused)
    ]
    lines = [shorten_quotes(line, overrides) for line in answers if line is not None]
    return "\n".join(lines) if message in lines else message


def _explain_not_deleted(hydra: Hydra, message: str, overrides: Sequence[str], config_name: str) -> str:
    """The message about a `~key` that Hydra could not delete."""
    key = parse(quoted_in(message)).full_key
    deletions = [item for item in map(parse, overrides) if item.is_deletion]
    text = next((item.text for item in deletions if item.full_key == key), f"~{key}")
    if "does not exist" in message:
        if foreign_answers.may_answer(key) and (
            answer := foreign_answers.answer(text, key, None, _default_keys(hydra, config_name), verb="")
        ):
            return answer
        return f"{text}: there is no such key, or its value is null already. Leave it out."
    if "and not" in message:
        return f"{text}: the key has another value. To delete it whatever its value, type ~{key}."
    return f"{text}: the defaults list has no such entry. To delete an entry, type ~{key}; one key of it, ~{key}.NAME."


def _explain_unknown_key(
    hydra: Hydra, overrides: list[str], config_name: str, override: Override, error: Exception
) -> str:
    cause = error.__cause__ or error
    assert isinstance(cause, OmegaConfBaseException)
    full_key = str(cause.full_key)
    cfg, _ = compose_the_rest(hydra, overrides, config_name, error)
    parent = full_key.rpartition(".")[0]
    node = OmegaConf.select(cfg, parent) if parent else cfg
    known_keys = [str(key) for key in node if key != "hydra"] if isinstance(node, DictConfig) else []
    return unknown_key(
        override.full_key, override.value_text, known_keys, keys_by_group(cfg) | {parent: known_keys}, override.text
    )


def _explain_unknown_group(hydra: Hydra, overrides: list[str], config_name: str, message: str) -> str:
    """`data@package=mnist`, or a group in a defaults list that does not exist."""
    group = re.search(r"config group '([^']*)' does not exist", message)
    name = group[1] if group else ""
    override = next((item for item in map(parse, overrides) if item.key == name), None)
    cfg = defaults(hydra, config_name)
    text = name if override is None else override.text
    value = None if override is None else override.value_text
    return unknown_key(name, value, list(cfg), keys_by_group(cfg), text)


def _wrong_type(error: ValidationError) -> str:
    message = reason_of(error)
    for omegaconf_name, words in _TYPE_WORDS.items():
        if message.endswith(f"could not be converted to {omegaconf_name}"):
            return f"must be {words}"
    if "is not a valid bool" in message:
        return "must be true or false"
    if message.endswith("is not Optional"):
        return "must not be null"
    if message.endswith("is not a ListConfig, list or tuple"):
        return "must be a list: [value]. If your shell expands brackets, quote the override: 'key=[value]'"
    if "incompatible with type hint 'Union[int, str]'" in message:
        return "must be a whole number or auto"
    return message


def reason_of(error: BaseException) -> str:
    """The first line of an error of OmegaConf or Hydra, without its full stop."""
    if "HydraConfig was not set" in str(error):
        return "${hydra:...} has no value before the run starts. Use an absolute path, or ${oc.env:PWD}/..."
    former = re.match(r"Interpolation key '(run_dir|run_label|experiment_name)' not found", str(error))
    if former is not None:
        return f"${{{former[1]}}} is not a key of the configuration. Write ${{laptime:{former[1]}}}"
    return first_line(error).removeprefix("ValueError raised while resolving interpolation: ").rstrip(".")
