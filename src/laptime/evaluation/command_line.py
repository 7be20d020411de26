"""Parses the arguments of `laptime evaluate` and `laptime export` in Hydra's key=value style. Loads no torch."""

import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from laptime.command_line import Parser, program, usage
from laptime.config.overrides import parse
from laptime.config.quoting import PATHS, as_text, refuse_dashes
from laptime.config.schema import closed_groups
from laptime.errors import UserError, exit_code_of
from laptime.evaluation.keys import SCHEMAS, TrainedRunConfig

# Not in conf/: some of its groups have the names of keys here.
CONF = Path(__file__).resolve().parent / "conf"
# For these keys `key=a,b` means the list [a,b].
_LIST_KEYS = ("format", "latency.batch_sizes", "security.allowed_targets")

# Takes the resolved configuration (a class in keys.SCHEMAS) and the typed overrides; returns the exit code.
Work = Callable[[Any, list[str]], int]


def run(parser: Parser, command: str, arguments: Sequence[str] | None, work: Work) -> int:
    """Parse the arguments and run a command.

    Args:
        parser: the parser that `make_parser` returns.
        command: evaluate or export. Its keys are in evaluation/conf/COMMAND.yaml.
        arguments: the typed arguments; None: those of the process.
        work: the function that does the command's work.

    Returns:
        The exit code of `work`, or 2 for a mistake in the arguments, 1 for an error of the system, 130 for Ctrl-C.
    """
    from laptime.terminal import StderrHandler, replace_unencodable

    replace_unencodable()
    logging.basicConfig(handlers=[StderrHandler()], level=logging.WARNING, format="%(message)s")
    return exit_code_of(lambda: _run(parser, command, sys.argv[1:] if arguments is None else arguments, work))


def _run(parser: Parser, command: str, arguments: Sequence[str], work: Work) -> int:
    from laptime.config.compose import add_user_modules

    schema = SCHEMAS[command]
    groups = {name: [field.name for field in fields(kind)] for name, kind in closed_groups(schema).items()}
    refuse_dashes(arguments, parser, {"": [field.name for field in fields(schema)], **groups})
    args = parser.parse_intermixed_args(arguments)
    add_user_modules(args.config_dir)
    overrides = [_quote_for_hydra(override) for override in args.overrides]
    return work(composed(command, overrides), overrides)


def composed(command: str, overrides: Sequence[str]) -> TrainedRunConfig:
    """Return the checked configuration of a command.

    Raises:
        UserError: an unknown key, a wrong type, or a value out of range.
    """
    from laptime.config.compose import compose, hydra_session, resolve_as, without_hydra
    from laptime.config.explain import shorten_quotes
    from laptime.evaluation import keys

    keys.register(command)
    path = next((word for word in overrides if "=" not in word and (word == "latest" or Path(word).exists())), None)
    if path is not None:
        raise UserError(f"{path}: must be an override (key=value). Write run={path}")
    has_run = any(o.key == "run" and o.value_text and not o.is_deletion for o in map(parse, overrides))
    try:
        with hydra_session(conf=CONF) as hydra:
            cfg = without_hydra(compose(hydra, overrides, command))
            if not has_run:  # unknown keys are reported first: `rn=latest`
                raise UserError(f"run: has no value. Give a run directory or latest: {program(command)} run=latest")
            return resolve_as(keys.SCHEMAS[command], cfg)
    except UserError as error:
        raise UserError(shorten_quotes(str(error), overrides)) from error


def _quote_for_hydra(override: str) -> str:
    parsed = parse(override)
    value = parsed.value_text or ""
    if parsed.key in PATHS and value not in ("", "null") and value[0] not in "'\"":
        return parsed.with_value(as_text(value))
    if parsed.key in _LIST_KEYS and value not in ("", "null") and not value.startswith("["):
        return parsed.with_value(f"[{value}]")
    return override


def make_parser(command: str, about: str, examples: Mapping[str, str]) -> Parser:
    """Return the parser of evaluate or export, whose help lists the keys."""
    description = f"{about}\n\nkeys and their defaults:\n\n{_keys(command)}"
    arguments = "run=RUN [key=value ...] [--config-dir DIR]"
    parser = Parser(command, description, examples, usage=usage(program(command), arguments))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="set a key, e.g. latency.num_calls=50")
    parser.add_argument(
        "--config-dir",
        metavar="DIR",
        help="the folder with your own classes that the training was given as --config-dir",
    )
    return parser


def _keys(command: str) -> str:
    """Return the indented text of the files that define the keys, including comments."""
    lines = []
    for name in ("trained_run", command):
        content = (CONF / f"{name}.yaml").read_text("utf-8")
        lines += re.sub(r"\A(#.*\n)*\n?(defaults:\n(  - .*\n)+\n)?", "", content).splitlines()
    return "\n".join(f"  {line}".rstrip() for line in lines).replace("%", "%%")
