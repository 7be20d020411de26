"""The command lines of evaluate.py and export.py: help, keys, mistakes, in Hydra's key=value style. Loads no torch."""

import argparse
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from laptime.config.overrides import parse
from laptime.config.quoting import PATHS, as_text, refuse_dashes
from laptime.errors import UserError, exit_code_of
from laptime.evaluation.keys import TrainedRunConfig

# Apart from conf/, whose groups have some of the keys' names.
_CONF = Path(__file__).resolve().parent / "conf"
# Keys of which `key=a,b` means a list.
_LISTS = ("format", "latency.batch_sizes", "security.allowed_targets")

Work = Callable[[Any, list[str]], int]  # the first is what keys.SCHEMAS has for the command


def run(command: str, about: str, arguments: Sequence[str] | None, work: Work) -> int:
    """Do what was typed.

    Args:
        command: evaluate or export; its keys stand in the file of that name in evaluation/conf/.
        about: what it does, with examples, for its help.
        arguments: as typed; None: the process's own.
        work: what is to be done with the resolved configuration and the overrides as typed; returns the exit code.

    Returns:
        The exit code: work's own, 2 for a mistake in what was typed, 1 for what the system refuses, 130 for Ctrl-C.
    """
    from laptime.terminal import StderrHandler, replace_unencodable

    replace_unencodable()
    logging.basicConfig(handlers=[StderrHandler()], level=logging.WARNING, format="%(message)s")
    return exit_code_of(lambda: _run(command, about, sys.argv[1:] if arguments is None else arguments, work))


def _run(command: str, about: str, arguments: Sequence[str], work: Work) -> int:
    from laptime.config.compose import add_user_modules

    parser = _parser(command, about)
    refuse_dashes(arguments, parser)
    args = parser.parse_args(arguments)
    if args.config_dir is not None and not Path(args.config_dir).is_dir():
        raise UserError(f"--config-dir {args.config_dir}: there is no such folder.")
    add_user_modules(args.config_dir)
    overrides = [_quote_for_hydra(each) for each in args.overrides]
    return work(composed(command, overrides), overrides)


def composed(command: str, overrides: Sequence[str]) -> TrainedRunConfig:
    """The checked configuration of a command.

    Raises:
        UserError: an unknown key, a wrong type, a value out of its range: one line, or two.
    """
    from laptime.config.compose import compose, hydra_session, resolve_as, without_hydra
    from laptime.config.explain import shorten_quotes
    from laptime.evaluation import keys

    keys.register(command)
    if not any(each.key == "run" and each.value_text and not each.is_deletion for each in map(parse, overrides)):
        raise UserError(f"run: has no value. Name a run directory or latest: python {command}.py run=latest")
    try:
        with hydra_session(conf=_CONF) as hydra:
            cfg = without_hydra(compose(hydra, overrides, command))
            return resolve_as(keys.SCHEMAS[command], cfg)
    except UserError as error:
        raise UserError(shorten_quotes(str(error), overrides)) from error


def _quote_for_hydra(override: str) -> str:
    typed = parse(override)
    value = typed.value_text or ""
    if typed.key in PATHS and value not in ("", "null") and value[0] not in "'\"":
        return typed.with_value(as_text(value))
    if typed.key in _LISTS and value not in ("", "null") and not value.startswith("["):
        return typed.with_value(f"[{value}]")
    return override


def _parser(command: str, about: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python {command}.py",
        usage=f"python {command}.py run=RUN [key=value] ...",
        description=f"{about}\n\nKeys, with their defaults:\n\n{_keys(command)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="sets a key; one within another: a.b=value")
    parser.add_argument(
        "--config-dir", metavar="DIR", help="a folder that holds classes of your own, as it was given to train.py"
    )
    return parser


def _keys(command: str) -> str:
    """The files that define the keys, comments included, indented."""
    lines = []
    for name in ("trained_run", command):
        content = (_CONF / f"{name}.yaml").read_text("utf-8")
        lines += re.sub(r"\A(#.*\n)*\n?(defaults:\n(  - .*\n)+\n)?", "", content).splitlines()
    return "\n".join(f"  {line}".rstrip() for line in lines).replace("%", "%%")
