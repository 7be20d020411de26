"""Messages about keys and options of other tools: what Laptime calls them, and a line to copy that Laptime accepts."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from hydra._internal.hydra import Hydra
from hydra.core.override_parser.types import IntervalSweep
from omegaconf import OmegaConf

from laptime.config import vouching
from laptime.config.foreign_keys import FOREIGN_KEYS, FOREIGN_OPTIONS, ForeignKey
from laptime.config.overrides import Override, parse
from laptime.config.schema import Config, closed_groups
from laptime.errors import UserError

# Groups whose keys may have any meaning: `scheduler.patience` is not the patience of early stopping.
_OPEN_MEANING = ("scheduler", "callbacks", "logger", "profiler", "hydra")
# Keys of evaluate and export that have the same values as a key of train.
_SAME_AS_IN_TRAINING = {key: f"training.{key}" for key in ("checkpoint", "precision", "compile")}
_KINDS = {bool: "true or false", int: "a number", float: "a number"}
# Checking a value takes up to half a second.
_MOST_CHECKED = 5

# The keys of each group, by its full name: "" is the root.
Groups = Mapping[str, Sequence[str]]
ROOT_KEYS: Groups = {"": [field.name for field in fields(Config)]}


def answer(
    text: str, key: str, value: str | None, groups: Groups, verb: str = "Type", is_sweep: bool = False
) -> str | None:
    """A line about a key that the configuration does not have: what Laptime calls it. None: the table lacks it.

    Args:
        text: what was typed, or the key and the value of a file.
        key: full, without a prefix: `trainer.max_epochs`.
        value: as typed; None: there is none.
        groups: the keys of the configuration. Rows about other keys are passed over.
        verb: before the override that replaces the key; "": nothing replaces it, because it is deleted.
        is_sweep: whether it was typed for a sweep.
    """
    for row, new_key in _candidates(key, groups):
        return f"{text}: {_answer(row, new_key, value, groups, verb, is_sweep)}"
    return None


def may_answer(key: str) -> bool:
    """Whether `answer` can have a line about a key, whatever the configuration. Needs no composing."""
    names = (key, key.rpartition(".")[2])
    return any(row.covers(name) is not None for row in FOREIGN_KEYS for name in names)


def answer_option(text: str, group: str, value: str, options: Sequence[str]) -> str | None:
    """A line about an option that a group does not have, if Laptime has it with another name.

    Args:
        value: as typed: an option, several to sweep over, or a list.
    """
    override = parse(f"{group}={value}")
    is_list = isinstance(override.value, list)
    values = [str(item) for item in override.value] if is_list else _values(override)
    names = {name: _option(group, name, options) for name in values if name not in options}
    if not names or None in names.values():
        return None
    unknown = f" {' and '.join(names)}" if len(values) > 1 else ""
    calls = f"{'it' if len(names) == 1 else 'them'} {' and '.join(map(str, names.values()))}"
    line = ",".join(names.get(name) or name for name in values)
    line = shlex.quote(f"{group}=[{line}]" if is_list else f"{group}={line}")
    return f"{text}: no such option{unknown}. Laptime calls {calls}. Type {line}."


@contextmanager
def explained_in_sweep(hydra: Hydra, overrides: Sequence[str]) -> Iterator[None]:
    """Make the answer to a job's key or option, which has one value, an answer to all values of the typed override."""
    try:
        yield
    except UserError as error:
        message = "\n".join(_explained_in_sweep(line, hydra, overrides) for line in str(error).splitlines())
        if message == str(error):
            raise
        raise UserError(message) from error


def _explained_in_sweep(line: str, hydra: Hydra, overrides: Sequence[str]) -> str:
    for override in map(parse, overrides):
        key, value = override.full_key, override.value_text
        if value is None or "Laptime" not in line or not line.lstrip("+").startswith(f"{key}="):
            continue
        options = hydra.config_loader.get_group_options(override.key) or []
        better = answer_option(override.text, override.key, value, options)
        better = better or answer(override.text, key, value, ROOT_KEYS, is_sweep=True)
        return better or line
    return line


def _option(group: str, name: str, options: Sequence[str]) -> str | None:
    """Laptime's name of an option of a group; None: it has none."""
    names = FOREIGN_OPTIONS.get(group, {})
    by_normal_name = {_normal(option): option for option in options}
    new = names.get(name.lower()) or names.get(_normal(name)) or by_normal_name.get(_normal(name))
    return new if new in options else None


def _normal(name: str) -> str:
    return re.sub(r"[-_ ]", "", name.lower())


def _candidates(key: str, groups: Groups) -> Iterator[tuple[ForeignKey, str]]:
    """The rows that answer for a key, best first, each with Laptime's key."""
    parent, _, name = key.rpartition(".")
    is_group = parent not in _OPEN_MEANING and (
        parent in groups[""] or any(row.covers(parent) == "" for row in FOREIGN_KEYS)
    )
    for wanted, exact, needs_key in (
        (key, True, False),
        (key, False, True),
        (name if is_group else "", True, True),  # `training.lr` is answered as `lr` is
        (key, False, False),
    ):
        for row in FOREIGN_KEYS:
            rest = row.covers(wanted) if wanted else None
            new_key = row.key.replace("*", rest or "")
            if rest is None or (rest == "") != exact or (needs_key and not row.key) or new_key == key:
                continue
            if _has(groups, new_key):
                yield row, new_key


def _has(groups: Groups, key: str) -> bool:
    """Whether a configuration may have a key. evaluate and export have only closed groups."""
    root, _, name = key.partition(".")
    if "training" in groups[""]:
        return root in ("", "hydra", "search") or root in groups[""]
    return root in groups[""] and (name in groups.get(root, ()) if name else root not in groups)


def _answer(row: ForeignKey, key: str, value: str | None, groups: Groups, verb: str, is_sweep: bool) -> str:
    if is_sweep and row.sweep_key:
        key = row.sweep_key
    name = f"Laptime's group is {key.partition('.')[0]}." if row.key.endswith("*") else f"Laptime calls it {key}."
    sentences = [f"Laptime calls it {key}." if key else "", row.note]
    root, _, leaf = key.partition(".")
    needs = [row.needs] if row.needs and leaf not in groups.get(root, ()) else []
    if not verb:
        sentences.append("There is nothing to delete: leave it out.")
    elif value is None or not value.strip("'\" "):
        meaning = row.values.get("")
        sentences.append(f"{verb} {' '.join([*needs, f'{key}=...'])}" if key and meaning is None else "")
    else:
        override = parse(f"{key or 'key'}={value}")
        line, reason = _line(row, key, override, needs, groups)
        if line is not None:
            if line in row.values.values() and "=" in line:
                sentences[0] = f"Laptime calls it {line}." if key else ""
            sentences.append(f"{verb} {line}." if line else "That is the default: leave it out.")
        elif reason is not None:
            sentences = [name, reason]
        elif key:
            sentences.append(f"{verb} {' '.join([*needs, f'{key}=...'])}")
    return " ".join(sentence for sentence in sentences if sentence)


def _line(
    row: ForeignKey, key: str, override: Override, needs: list[str], groups: Groups
) -> tuple[str | None, str | None]:
    """The overrides to type instead, and why there are none.

    Returns:
        The overrides ("": none is needed), or None; and the message that they would be refused with, or None.
    """
    values = _values(override)
    converted = [_convert(row, value) for value in values]
    if len(values) == 1 and not override.is_swept and (converted[0] == "" or "=" in (converted[0] or "")):
        meaning = converted[0] or ""
        return meaning, None
    if not key or not converted or any(not value or "=" in value for value in converted if value != key):
        return None, None
    checked = [str(value) for value in converted]
    reasons = [_refusal(key, value, needs, groups) for value in checked[:_MOST_CHECKED]]
    if (reason := next(filter(None, reasons), None)) is not None:
        return None, reason
    text = (override.value_text or "") if checked == values and override.is_swept else ",".join(checked)
    return " ".join([*needs, shlex.quote(f"{key}={text}")]), None


def _values(override: Override) -> list[str]:
    """The texts of the values of an override: several if it is swept."""
    text = (override.value_text or "").strip()
    if not override.is_swept or override.parsed is None:
        return [text]
    sweep = override.parsed.value()
    if isinstance(sweep, IntervalSweep):
        return [str(sweep.start), str(sweep.end)]
    try:
        return [str(value) for value in override.parsed.sweep_string_iterator()]
    except Exception:  # glob(*) needs Hydra's loader
        return [text]


def _convert(row: ForeignKey, value: str) -> str | None:
    """Laptime's value: "" for the default, a text with = for overrides; None: there is no known one."""
    meaning = row.values.get(value.strip("'\" ").lower())
    if meaning is not None:
        return meaning
    items = parse(f"key={value}").value
    if row.is_count and isinstance(items, list):
        return str(len(items))
    return value if row.is_copied and row.key else None


def _refusal(key: str, value: str, needs: list[str], groups: Groups) -> str | None:
    """The message that Laptime refuses a value of a key with, in one line; None: it accepts it."""
    from laptime.config.compose import compose, hydra_session, resolve, without_hydra
    from laptime.config.quoting import PATHS, quote_for_hydra

    full_key = _SAME_AS_IN_TRAINING.get(key, key)
    root, _, leaf = key.partition(".")
    is_open = bool(leaf) and root in ROOT_KEYS[""] and root not in closed_groups()
    text = f"{full_key}={value}"
    folder = vouching.state().folder
    try:
        if full_key in PATHS and isinstance(parse(text).value, bool):
            raise UserError(f"{text}: must be a path.")
        (line,) = quote_for_hydra([text])
        with hydra_session(None if folder is None else str(folder)) as hydra:
            if is_open:
                default = OmegaConf.select(without_hydra(compose(hydra, needs)), key)
                _require_kind(text, default, parse(line).value)
            # A key of an open group may belong to another option, which the user has typed.
            if not is_open or leaf not in groups.get(root, ()):
                resolve(without_hydra(compose(hydra, [*needs, line])))
    except UserError as error:
        return f"{key}{str(error).removeprefix(full_key)}" if str(error).startswith(full_key) else str(error)
    return None


def _require_kind(text: str, default: Any, value: Any) -> None:
    """Refuse a value of another kind than the default: open groups have no types."""
    for kind, words in _KINDS.items():
        if isinstance(default, kind):
            is_same = isinstance(value, bool) == (kind is bool) and isinstance(value, int | float)
            if not is_same and "${" not in str(value):
                raise UserError(f"{text}: must be {words}.")
            return
