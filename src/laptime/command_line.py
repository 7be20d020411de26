"""What the commands share: their names, their start and their argument parser. Loads neither Hydra nor torch."""

import argparse
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from laptime import fast_start, starting
from laptime.errors import UserError, exit_code_of
from laptime.suggest import did_you_mean
from laptime.version import __version__

_PACKAGE = Path(__file__).resolve().parent
# `python -m laptime.analysis` is the older form of `laptime analyze`.
_MODULES = {"analyze": "analysis"}
# Scripts of the checkout, each named after its command.
_SCRIPTS = ("train.py", "evaluate.py", "export.py")
_WIDTH = 80


def program(command: str = "") -> str:
    """Return how to type a command, in the form in which this process was started.

    Examples: `laptime tune`, `python -m laptime.tune`, `python evaluate.py`. The default command, train, is `laptime`
    alone unless its name was typed.

    Args:
        command: one of `laptime.cli.dispatch.COMMANDS`; empty: the name of the whole program.
    """
    script = Path(sys.argv[0] or "laptime")
    word = "" if command == "train" and sys.argv[1:2] != ["train"] else command
    if script.name in _SCRIPTS and script.resolve().parent != _PACKAGE:
        sibling = script.with_name(f"{command}.py")
        if sibling.name in _SCRIPTS and sibling.exists():
            return f"{_interpreter()} {sibling}"
        return f"{_interpreter()} -m laptime{f'.{_MODULES.get(word, word)}' if word else ''}"
    if script.resolve().is_relative_to(_PACKAGE):
        module = script.resolve().relative_to(_PACKAGE).with_suffix("").parts[0]
        if command and module == _MODULES.get(command, command):
            return f"{_interpreter()} -m laptime.{module}"
        return f"{_interpreter()} -m laptime {word}".rstrip()
    return f"laptime {word}".rstrip()


def typed_command() -> list[str]:
    """Return the command that started this process, for run.json. Programs are named without their folders."""
    words = [_interpreter(), *sys.orig_argv[1:]]
    # A shell starts an installed script through its interpreter: `python3 /env/bin/laptime`.
    if len(words) > 1 and Path(words[1]).stem == "laptime" and Path(words[1]).is_file():
        return ["laptime", *words[2:]]
    return words


def _interpreter() -> str:
    return Path(sys.orig_argv[0] or "python").name


def run_command(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a command with the arguments of this process, and exit with its exit code.

    Args:
        main: runs the command with the given arguments and returns the exit code.
    """
    arguments = sys.argv[1:]

    def announced() -> int:
        starting.announce(arguments)
        return main(arguments)

    fast_start.begin()
    sys.exit(exit_code_of(announced))


class Parser(argparse.ArgumentParser):
    """A parser that reports a mistake in one line, and suggests a similar option if there is one.

    Args:
        command: one of `laptime.cli.dispatch.COMMANDS`.
        description: what the command does.
        examples: the remark (or an empty text) for each example, which is given without the program's name.
        settings: further arguments for argparse.ArgumentParser.
    """

    def __init__(self, command: str, description: str, examples: Mapping[str, str], **settings: Any) -> None:
        super().__init__(
            prog=program(command),
            description=description,
            epilog=format_examples(program(command), examples),
            formatter_class=_HelpFormatter,
            **settings,
        )
        self.add_argument(
            "--version", action="version", version=f"laptime {__version__}", help="show the version and exit"
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse like argparse, but report an unknown option before other mistakes, which may follow from it."""
        names = option_strings(self)
        for word in sys.argv[1:] if args is None else args:
            option = word.partition("=")[0]
            if word == "-V" or (re.match("--[a-z]", option) and not any(name.startswith(option) for name in names)):
                self.error(f"unrecognized arguments: {word}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raises: UserError."""
        refuse(self, message)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Formats help texts with at most 80 columns, also on a wider terminal."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=min(_WIDTH, shutil.get_terminal_size().columns) - 2)


def format_examples(prog: str, examples: Mapping[str, str]) -> str:
    """Format the examples of a help text. A remark that makes its line too long goes below the example."""
    lines = {f"  {prog} {arguments}".rstrip(): remark for arguments, remark in examples.items()}
    column = max(
        (len(line) for line, remark in lines.items() if remark and len(line) + len(remark) + 2 < _WIDTH), default=0
    )
    text = ["examples:"]
    for line, remark in lines.items():
        if remark and len(line) <= column and column + len(remark) + 2 <= _WIDTH:
            text.append(f"{line:<{column}}  {remark}")
        else:
            text += [line, f"      {remark}"] if remark else [line]
    return "\n".join(text)


def usage(prog: str, arguments: str) -> str:
    """Return the usage line of a command; the arguments go below a long name of the program."""
    line = f"{prog} {arguments}"
    return line if len(f"usage: {line}") <= _WIDTH else f"{prog}\n       {arguments}"


def refuse(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    """Turn an error message of argparse into Laptime's form.

    Raises:
        UserError: always; names the argument and the option or value that may be meant.
    """
    see = f"See: {parser.prog} --help"
    unrecognized = message.removeprefix("unrecognized arguments: ")
    if unrecognized != message:
        argument = unrecognized.split()[0]
        if argument.startswith("-"):
            option = argument.partition("=")[0]
            meant = "--version" if option == "-V" else option
            raise UserError(f"{option}: unknown option. {did_you_mean(meant, parser._option_string_actions) or see}")
        raise UserError(f"{argument}: unexpected argument. {see}")
    choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
    if choice is not None:
        choices = [value.strip(" '") for value in choice[2].split(",")]
        suggestion = did_you_mean(choice[1], choices) or f"Choose from {', '.join(choices)}."
        raise UserError(f"{choice[1]}: unknown value. {suggestion}")
    raise UserError(f"{message}. {see}")


def option_strings(parser: argparse.ArgumentParser) -> Sequence[str]:
    """The long options of a parser."""
    return [option for option in parser._option_string_actions if option.startswith("--")]
