"""Hydra's flags that print something instead of training: --help, --hydra-help, --cfg, --info, --shell-completion.

Loads no torch, and composes once.
"""

import argparse
import contextlib
import copy
import io
import re
from typing import TYPE_CHECKING

from hydra._internal.utils import run_and_report

from laptime.command_line import program
from laptime.config.compose import (
    CONFIG_NAME,
    add_search_sweeper,
    compose,
    hydra_session,
    resolve,
    without_hydra,
)
from laptime.config.validate import validate
from laptime.errors import UserError, ignore_broken_pipe

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra


def print_instead(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Print what the flags ask for. Examples in the help name the command as the user typed it.

    Args:
        args: the parsed command line, with one of the flags.
        parser: Hydra's parser, whose flags the help lists.

    Raises:
        UserError: the configuration is wrong, or several flags are given.
    """
    if not (args.help or args.hydra_help):
        _refuse_several(args)
    args.overrides = add_search_sweeper(args.overrides)
    with hydra_session(args.config_dir) as hydra:
        if args.help or (not args.hydra_help and (args.cfg or args.info)):
            composed = compose(hydra, args.overrides, args.config_name)
            if args.cfg:
                validate(resolve(without_hydra(composed)))
            # Hydra's functions would compose it again.
            hydra.config_loader.load_configuration = lambda **_: copy.deepcopy(composed)  # type: ignore[method-assign]
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output):
                _print(hydra, args, parser)
        finally:  # also where Hydra ends the process
            text = output.getvalue()
            if args.help:
                text = re.sub("\n{3,}", "\n\n", text.replace("python train.py", program("train"))).strip() + "\n"
            with ignore_broken_pipe():
                print(text, end="")


def _refuse_several(args: argparse.Namespace) -> None:
    """Raises: UserError: the flags exclude each other."""
    given = {
        "--cfg": args.cfg, "--info": args.info, "--shell-completion": args.shell_completion,
        "--run": args.run, "--multirun": args.multirun,
    }  # fmt: skip
    flags = [flag for flag, value in given.items() if value]
    if len(flags) > 1:
        raise UserError(f"{' and '.join(flags)}: can't be combined. Leave one out.")


def _print(hydra: "Hydra", args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    name, overrides = args.config_name or CONFIG_NAME, args.overrides
    if args.help:
        hydra.app_help(name, parser, args)
    elif args.hydra_help:
        hydra.hydra_help(name, parser, args)
    elif args.cfg:
        run_and_report(lambda: hydra.show_cfg(name, overrides, args.cfg, args.package, args.resolve))
    elif args.info:
        hydra.show_info(args.info, name, overrides)
    else:
        run_and_report(lambda: hydra.shell_completion(name, overrides))
