"""Shell completion for `laptime` and its subcommands. Loads no torch.

`laptime --shell-completion install=bash` prints Hydra's own completion script. At each Tab the script calls `laptime
--shell-completion query=bash` with the typed line in COMP_LINE, and offers the words that this module prints.
"""

import contextlib
import io
import os
import re
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path

from laptime.cli.dispatch import COMMANDS
from laptime.command_line import option_strings

_TUNED = ("batch_size", "lr")
# Keys whose value is a sweep or run directory, or latest.
_DIRECTORY_KEYS = {"train": ("sweep.resume",), "evaluate": ("run",), "export": ("run",)}
# Options of Hydra's parser that Laptime always refuses.
_REFUSED_OPTIONS = ("--config-path", "--experimental-rerun")


def print_completions(shell: str) -> None:
    """Print the words that can follow COMP_LINE. fish reads one word per line, bash and zsh one line."""
    _, _, line = os.environ.get("COMP_LINE", "").lstrip().partition(" ")
    print(("\n" if shell == "fish" else " ").join(complete(line)))


def complete(line: str) -> list[str]:
    """Return the words that can replace the last word of a command line.

    Args:
        line: the command line after the name of the program. If it is empty or ends in a space, a new word begins.
    """
    words = line.split()
    prefix = "" if not words or line[-1].isspace() else words.pop()
    if words == ["help"]:
        return [name for name in COMMANDS if name.startswith(prefix)]
    if words and words[0] in COMMANDS:
        return _complete_command(words[0], words[1:], prefix)
    commands = [] if words else [name for name in COMMANDS if name.startswith(prefix)]
    return [*commands, *_complete_command("train", words, prefix)]


def _complete_command(command: str, words: Sequence[str], prefix: str) -> list[str]:
    """Return the completions of an argument of a command.

    Args:
        words: the arguments before it.
        prefix: its typed beginning.
    """
    parser: ArgumentParser = import_module(COMMANDS[command].module).make_parser()
    previous = parser._option_string_actions.get(words[-1]) if words else None
    if previous is not None and previous.nargs is None:  # its value follows, e.g. a file, which the shell completes
        return []
    if prefix.startswith("-"):
        return [name for name in option_strings(parser) if name.startswith(prefix) and name not in _REFUSED_OPTIONS]
    if command in ("analyze", "watch"):
        return _directories(prefix)
    key, equals, value = prefix.partition("=")
    if equals and key in _DIRECTORY_KEYS.get(command, ()):
        return [f"{key}={path}" for path in _directories(value)]
    if equals and (values := _values(command, key)):
        done, comma, begun = value.rpartition(",")
        return [f"{key}={done}{comma}{name}" for name in values if name.startswith(begun)]
    if command == "tune" and not set(_TUNED) & set(words):
        return [name for name in _TUNED if name.startswith(prefix)]
    return [] if command == "doctor" else _complete_override(command, words, prefix)


def _directories(prefix: str) -> list[str]:
    return [name for name in ["latest", *_folders(prefix)] if name.startswith(prefix)]


def _values(command: str, key: str) -> Sequence[str]:
    """Return the values of a key of evaluate or export, which Hydra does not know; empty: any value."""
    from laptime.config.schema import DEVICES, PRECISIONS
    from laptime.evaluation.keys import FORMATS

    values: dict[str, dict[str, Sequence[str]]] = {
        "evaluate": {"device": DEVICES, "precision": PRECISIONS},
        "export": {"format": (*FORMATS, "all")},
    }
    return values.get(command, {}).get(key, ())


def _folders(prefix: str) -> list[str]:
    parent = Path(prefix).parent if not prefix.endswith("/") else Path(prefix)
    with contextlib.suppress(OSError):
        return [f"{path}/" for path in sorted(parent.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    return []


def _complete_override(command: str, words: Sequence[str], prefix: str) -> list[str]:
    """Return Hydra's completions: groups, options and keys."""
    from hydra._internal.core_plugins.bash_completion import BashCompletion

    from laptime.config.compose import CONFIG_NAME, hydra_session
    from laptime.evaluation import command_line, keys

    folder = next((value for option, value in pairwise(words) if option in ("--config-dir", "-cd")), None)
    flags = ["-m"] if {"-m", "--multirun"} & set(words) else []
    overrides = [word for word in words if re.search(r"[=~+]", word) and not word.startswith("-")]
    conf = None
    if command in keys.SCHEMAS:
        keys.register(command)
        conf = command_line.CONF
    with (  # if the words before are wrong, nothing is offered
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.suppress(Exception, SystemExit),
        hydra_session(folder, conf) as hydra,
    ):
        query = BashCompletion(hydra.config_loader)._query
        return list(query(config_name=command if conf else CONFIG_NAME, line=" ".join([*flags, *overrides, prefix])))
    return []
