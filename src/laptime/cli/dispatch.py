"""The command `laptime`: finds the subcommand that was typed and runs it. Loads neither Hydra nor torch itself."""

import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NamedTuple, NoReturn

from laptime import fast_start, starting
from laptime.command_line import format_examples, program
from laptime.errors import UserError, exit_code_of, ignore_broken_pipe
from laptime.suggest import did_you_mean
from laptime.version import __version__


class Command(NamedTuple):
    """A subcommand.

    Attributes:
        module: the module with its `main(arguments)`, which returns the exit code.
        summary: one line for the help.
    """

    module: str
    summary: str


COMMANDS = {
    "train": Command("laptime.cli.train", "train and time a model, or sweep with -m (the default)"),
    "doctor": Command("laptime.doctor.__main__", "check this machine: what works and how noisy it is"),
    "tune": Command("laptime.tune.__main__", "find a batch size that fits, or a learning rate"),
    "watch": Command("laptime.watch.__main__", "follow a sweep or a run while it is running"),
    "analyze": Command("laptime.analysis.__main__", "compare runs: tables, plots and reports"),
    "evaluate": Command("laptime.evaluate", "test accuracy and latency of a trained model"),
    "export": Command("laptime.export", "write a trained model as ONNX or another format"),
}
_EXAMPLES = {
    "": "train an MLP on MNIST, on the best device",
    "model=cnn training.epochs=3": "train another model",
    "-m seed=1,2,3 device=cpu,cuda": "sweep: compare devices, 3 repeats",
    "doctor": "check this machine first",
    "analyze latest": "report on the newest sweep",
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the subcommand that the first argument names. Without such a name, run train.

    The exit code is 0 if it completed, 1 if it failed, 2 for a mistake in the arguments, and 128 + n for signal n.
    """
    fast_start.begin()
    words = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(exit_code_of(lambda: _run(words)))


def _run(words: list[str]) -> int:
    first = words[0] if words else ""
    if first in COMMANDS:
        return _run_command(first, words[1:])
    if first == "--version":
        return _print(f"laptime {__version__}")
    if first in ("help", "--help", "-h"):
        if len(words) == 1:
            return _print(_help())
        if first == "help" or _is_bare(words[1]):  # otherwise an override: `--help model=cnn` is Hydra's
            _require_command(words[1])
            return _run_command(words[1], ["--help"])
    if first in ("-sc", "--shell-completion") and len(words) == 2 and words[1].startswith("query="):
        from laptime.cli.completion import print_completions

        with ignore_broken_pipe():
            print_completions(words[1].removeprefix("query="))
        return 0
    if _is_bare(first):
        _require_command(first)
    return _run_command("train", words)


def _print(text: str) -> int:
    with ignore_broken_pipe():
        print(text)
    return 0


def _is_bare(word: str) -> bool:
    """Whether a word can be a mistyped command: it is no flag (-m) and no override (which has =, ~ or +)."""
    return word.strip() != "" and not word.startswith("-") and not re.search(r"[=~+]", word)


def _run_command(name: str, arguments: list[str]) -> int:
    starting.announce(arguments)
    module: Any = import_module(COMMANDS[name].module)
    return int(module.main(arguments))


def _require_command(word: str) -> None:
    """Raises: UserError: there is no such command."""
    if word not in COMMANDS:
        suggestion = did_you_mean(word, [*COMMANDS, "--version"], cutoff=0.6) or f"Commands: {', '.join(COMMANDS)}."
        raise UserError(f"{word}: must be a command or an override (key=value). {suggestion}")


def _help() -> str:
    prog = program()
    commands = "\n".join(f"  {name:<10}{command.summary}" for name, command in COMMANDS.items())
    return f"""\
usage: {prog} [COMMAND] [ARGUMENTS]

Times the training of PyTorch models: how fast, on which device, and why.

commands:
{commands}

{format_examples(prog, _EXAMPLES)}

Arguments of a command:  {prog} COMMAND --help
Tab completion in bash:  eval "$(laptime --shell-completion install=bash)\""""
