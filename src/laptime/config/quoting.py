"""Prepares overrides for Hydra's grammar: quotes paths, refuses overrides typed as flags. Loads no torch."""

import argparse
import re
import sys
from collections.abc import Sequence

from laptime.config.foreign_answers import ROOT_KEYS, Groups, answer
from laptime.config.overrides import parse
from laptime.errors import UserError
from laptime.suggest import did_you_mean
from laptime.text import escape_control_chars

# Keys whose values are paths, which may contain any characters.
PATHS = ("training.checkpoint", "dataset.root", "sweep.resume", "hydra.run.dir", "hydra.sweep.dir", "run", "checkpoint")
# Groups with an option `none`. Hydra accepts no null as an option, so GROUP=null is read as GROUP=none.
GROUPS_WITH_NONE = ("scheduler", "callbacks", "logger", "profiler", "experiment", "search")
_NULL = re.compile(r"(?<![\w./'\"-])null(?![\w./'\"-])")
# If another value contains one of these, the user has written it in Hydra's grammar.
_STRUCTURE = re.compile(r"[\[\](){}'\"\\]")


def quote_for_hydra(overrides: Sequence[str]) -> list[str]:
    """Quote values that Hydra's grammar rejects, like the path `a/lr=0.1/last.ckpt`.

    Values that are separated by commas are quoted one by one. Brackets and quotes are kept, except in paths.

    Raises:
        UserError: an override begins with a dash, or contains bytes that the locale's encoding can't decode.
    """
    for override in overrides:
        key, equals, value = override.partition("=")
        if equals and key.strip() and key != key.rstrip():
            raise UserError(f"{override}: no spaces around =. Write {key.strip()}={value.strip()}")
        if re.match(r"-+[A-Za-z_]", override):
            raise _with_dashes(override)
        if any("\ud800" <= character <= "\udfff" for character in override):
            encoding = sys.getfilesystemencoding()
            raise UserError(
                f"{escape_control_chars(override)}: can't be decoded in the locale's encoding, {encoding}. "
                "Set PYTHONUTF8=1."
            )
    return [_quote_for_hydra(override) for override in overrides]


def refuse_dashes(
    arguments: Sequence[str],
    parser: argparse.ArgumentParser,
    groups: Groups = ROOT_KEYS,
) -> None:
    """Refuse an override that is typed as a flag before the parser reports an unknown option. Refuse two --config-dir.

    Args:
        groups: the keys of the command's configuration.

    Raises:
        UserError: names the override without dashes, or the key or flag that may be meant.
    """
    flags = parser._option_string_actions
    folders = [text for text in arguments if re.match(r"(--config-d|-cd\b)", text)]
    if len(folders) > 1:
        raise UserError("--config-dir: can be given only once. Add more folders with hydra.searchpath=[file://...].")
    for number, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        shortened = flag.startswith("--") and any(name.startswith(flag) for name in flags)
        if not re.match(r"-+[A-Za-z_]", argument) or flag in flags or shortened:
            continue
        following = arguments[number + 1] if number + 1 < len(arguments) else "-"
        if not equals and not following.startswith("-") and "=" not in following:
            value = following
        key = flag.lstrip("-").replace("-", "_")
        text = argument if equals or not value else f"{argument} {value}"
        if (message := answer(text, key, value or None, groups)) is not None:
            raise UserError(message)
        if key.partition(".")[0] in groups[""]:
            raise UserError(f"{text}: overrides have no dashes. Write {key}={value}")
        if flag.startswith("--") and (suggestion := did_you_mean(flag, flags)):
            raise UserError(f"{flag}: unknown option. {suggestion}")
        if equals:
            raise _with_dashes(argument)


def as_text(value: str) -> str:
    """A value in quotes for Hydra's grammar."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    trailing = re.search(r"\\*$", escaped)
    return f"'{escaped}{trailing[0] if trailing else ''}'"


def how_to_quote(override: str) -> str:
    """What to type in a shell instead of an override that Hydra's grammar rejects."""
    parsed = parse(override)
    value = parsed.value_text or ""
    shown = "..." if re.search(r"['\"\\]", value) else value
    escapes = ', with \\" for each " in it' if '"' in value else ""
    quoted = parsed.with_value(f'"{shown}"')
    return f"Quote a value with special characters twice: '{quoted}'{escapes}."


def _with_dashes(argument: str) -> UserError:
    return UserError(f"{argument}: overrides have no dashes. Write {argument.lstrip('-')}")


def _quote_for_hydra(text: str) -> str:
    override = parse(text)
    if override.key in GROUPS_WITH_NONE and not override.is_addition:
        if text == "~logger":  # Hydra can't delete a group with a list of options
            return "logger=none"
        # none beside another option is refused; the message quotes what was typed.
        if override.value_text is not None and not re.match(r"\s*\[.*,", override.value_text):
            without_null = _NULL.sub("none", override.value_text)
            return override.with_value("none" if re.fullmatch(r"\s*\[\s*\]\s*", without_null) else without_null)
    is_path = override.key in PATHS
    if override.parsed is not None and not (is_path and isinstance(override.value, int | float)):
        return text
    value = override.value_text
    if value is None or value[:1] in ("'", '"') or (not is_path and _STRUCTURE.search(value)):
        return text
    parts = [value] if "${" in value else value.split(",")
    return override.with_value(
        ",".join(part if _is_text(override.with_value(part)) else as_text(part) for part in parts)
    )


def _is_text(override: str) -> bool:
    return isinstance(parse(override).value, str)
