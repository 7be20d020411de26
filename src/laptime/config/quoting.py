"""From what was typed to overrides that Hydra's grammar takes: paths are quoted, dashes are refused. Loads no torch."""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import fields

from laptime.command_line import did_you_mean
from laptime.config import foreign_keys
from laptime.config.overrides import parse
from laptime.config.schema import Config
from laptime.errors import UserError
from laptime.text import escape_control_chars

# Keys whose values are paths, with any characters.
PATHS = ("training.checkpoint", "dataset.root", "sweep.resume", "hydra.run.dir", "hydra.sweep.dir", "run", "checkpoint")
_ROOTS = [field.name for field in fields(Config)]
# Groups with an option `none`. Hydra accepts no null as an option, so GROUP=null is read as GROUP=none.
GROUPS_WITH_NONE = ("scheduler", "callbacks", "logger", "profiler", "experiment", "search")
# Of another value these say that it is meant as Hydra's grammar says.
_STRUCTURE = re.compile(r"[\[\](){}'\"\\]")


def quote_for_hydra(overrides: Sequence[str]) -> list[str]:
    """Overrides with those values in quotes that Hydra's grammar doesn't take as they are: `a/lr=0.1/last.ckpt`.

    Of several values, separated by commas, each is a value of its own. Brackets and quotes are left to Hydra, except in
    paths.

    Raises:
        UserError: one begins with a dash, or has bytes that the locale's encoding doesn't know.
    """
    for override in overrides:
        if re.match(r"-+[A-Za-z_]", override):
            raise _with_dashes(override)
        if any("\ud800" <= character <= "\udfff" for character in override):
            encoding = sys.getfilesystemencoding()
            raise UserError(
                f"{escape_control_chars(override)}: is no text in the locale's encoding, {encoding}. Set PYTHONUTF8=1."
            )
    return [_quote_for_hydra(override) for override in overrides]


def refuse_dashes(arguments: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Refuse an override that is typed as a flag, before the parser answers with its usage.

    Raises:
        UserError: names it without dashes, or the key or flag that is meant.
    """
    flags = parser._option_string_actions
    for number, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        shortened = flag.startswith("--") and any(known.startswith(flag) for known in flags)
        if not re.match(r"-+[A-Za-z_]", argument) or flag in flags or shortened:
            continue
        following = arguments[number + 1] if number + 1 < len(arguments) else "-"
        if not equals and not following.startswith("-") and "=" not in following:
            value = following
        key = flag.lstrip("-").replace("-", "_")
        text = argument if equals or not value else f"{argument} {value}"
        if (answer := foreign_keys.answer(text, key, value or None, _ROOTS)) is not None:
            raise UserError(answer)
        if key.partition(".")[0] in _ROOTS:
            raise UserError(f"{text}: is not a flag. Write an override without dashes: {key}={value}")
        if flag.startswith("--") and (suggestion := did_you_mean(flag, flags)):
            raise UserError(f"{flag}: unknown option. {suggestion}")
        if equals:
            raise _with_dashes(argument)


def as_text(value: str) -> str:
    """A value in quotes, which Hydra takes as it is."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    trailing = re.search(r"\\*$", escaped)
    return f"'{escaped}{trailing[0] if trailing else ''}'"


def how_to_quote(override: str) -> str:
    """What to type in a shell instead of an override that Hydra's grammar doesn't take."""
    parsed = parse(override)
    value = parsed.value_text or ""
    shown = "..." if re.search(r"['\"\\]", value) else value
    escapes = ', with \\" for each " in it' if '"' in value else ""
    quoted = parsed.with_value(f'"{shown}"')
    return f"A value with special characters takes quotes of its own: '{quoted}'{escapes}."


def _with_dashes(argument: str) -> UserError:
    return UserError(f"{argument}: is not a flag. Write an override without dashes: {argument.lstrip('-')}")


def _quote_for_hydra(override: str) -> str:
    typed = parse(override)
    if typed.key in GROUPS_WITH_NONE and typed.value_text is not None:
        options = typed.value_text.split(",")
        return typed.with_value(",".join("none" if option.strip() == "null" else option for option in options))
    is_path = typed.key in PATHS
    if typed.parsed is not None and not (is_path and isinstance(typed.value, int | float)):
        return override
    value = typed.value_text
    if value is None or value[:1] in ("'", '"') or (not is_path and _STRUCTURE.search(value)):
        return override
    parts = [value] if "${" in value else value.split(",")
    return typed.with_value(",".join(part if _is_text(typed.with_value(part)) else as_text(part) for part in parts))


def _is_text(override: str) -> bool:
    return isinstance(parse(override).value, str)
