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
        return [option for option in option_strings(parser) if option.startswith(prefix)]
    if command in ("analyze", "watch"):
        return [name for name in ["latest", *_folders(prefix)] if name.startswith(prefix)]
    if command == "tune" and not set(_TUNED) & set(words):
        return [name for name in _TUNED if name.startswith(prefix)]
    return [] if command == "doctor" else _complete_override(command, words, prefix)


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
