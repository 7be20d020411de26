"""The command `laptime tune`: finds a batch size that fits, or a learning rate to start from, by trying several."""

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from laptime import starting
from laptime.command_line import Parser, run_command
from laptime.errors import UserError, exit_code_of, ignore_broken_pipe

if TYPE_CHECKING:
    from laptime.config.schema import Config

_ABOUT = """\
Tries values on this machine and prints the command to train with.

  batch_size   Doubles the batch size until it no longer fits into memory,
               reaches the size of the data set, or --limit is over. Finds the
               largest that fits, and the smallest that is about as fast as
               the fastest.
  lr           Lightning's range test: finds the learning rate at which the
               loss falls fastest."""
_EXAMPLES = {
    "batch_size model=resnet18 device=cuda": "",
    "lr model=cnn optimizer=sgd --plot lr.png": "",
}
# The options that only one of the two takes, with their defaults.
_OPTIONS: dict[str, dict[str, str | None]] = {
    "batch_size": {"limit": "120"},
    "lr": {"lowest": "1e-6", "highest": "1", "steps": "100", "plot": None},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit code: 0, 1 if nothing was found, 2 for a mistake in the arguments, 130 for Ctrl-C."""
    from laptime.terminal import StderrHandler, replace_unencodable

    replace_unencodable()
    logging.basicConfig(handlers=[StderrHandler()], level=logging.WARNING, format="%(message)s")
    return exit_code_of(lambda: _run(_parsed(sys.argv[1:] if arguments is None else arguments)))


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    from laptime.config.quoting import quote_for_hydra, refuse_dashes

    parser = make_parser()
    if not arguments:
        parser.error("Choose batch_size or lr")
    refuse_dashes(arguments, parser)
    args = parser.parse_intermixed_args(arguments)
    args.overrides = quote_for_hydra(args.overrides)
    return args


def make_parser() -> Parser:
    parser = Parser("tune", _ABOUT, _EXAMPLES)
    parser.add_argument("what", choices=("batch_size", "lr"), help="what to find")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="overrides of the configuration, as for train"
    )
    parser.add_argument("--config-dir", metavar="DIR", help="a folder with your own configuration, as for train")
    parser.add_argument("--limit", metavar="S", help="batch_size: time limit in seconds (default: 120)")
    parser.add_argument("--lowest", metavar="LR", help="lr: learning rate of the first step (default: 1e-6)")
    parser.add_argument("--highest", metavar="LR", help="lr: learning rate of the last step (default: 1)")
    parser.add_argument("--steps", metavar="N", help="lr: number of optimizer steps (default: 100)")
    parser.add_argument("--plot", metavar="FILE", help="lr: plot loss over learning rate (.png, .svg or .pdf)")
    return parser


def _run(args: argparse.Namespace) -> int:
    for search, options in _OPTIONS.items():
        for option, default in options.items():
            if (value := getattr(args, option)) is None:
                setattr(args, option, default)
            elif search != args.what:
                raise UserError(f"--{option} {value}: only works with {search}. Leave it out.")
    limit_s = _number("--limit", args.limit, "a number of seconds above 0, e.g. 120")
    lowest = _number("--lowest", args.lowest, "a learning rate above 0, e.g. 1e-6")
    highest = _number("--highest", args.highest, "a learning rate above --lowest, e.g. 1", above=lowest)
    num_steps = _steps(args.steps)
    plot = None if args.plot is None else _file(args.plot)
    config = _config(args)

    import pytorch_lightning as pl
    import torch

    from laptime.runner.rank_plan import threads_per_rank
    from laptime.training.build import prepare_device
    from laptime.training.faults import translated_errors
    from laptime.tune import batch_size, lr, show

    train_arguments = [*(["--config-dir", args.config_dir] if args.config_dir else []), *args.overrides]
    device = prepare_device(config)
    torch.set_num_threads(threads_per_rank(config))
    pl.seed_everything(config.seed, workers=False, verbose=False)
    with translated_errors(config), ignore_broken_pipe():
        if args.what == "batch_size":
            show.batch_sizes(batch_size.find(config, device, limit_s, show.trial), train_arguments)
        else:
            tested = lr.find(config, device, lowest, highest, num_steps)
            if plot is not None:
                tested.plot(plot)
            show.lr(tested, train_arguments, plot)
    return 0


def _config(args: argparse.Namespace) -> "Config":
    """Return the checked configuration that `laptime train` would have with these overrides."""
    from laptime.config import security  # noqa: F401  reads the allow-list before a configuration can change it
    from laptime.config.compose import add_user_modules, compose, hydra_session
    from laptime.config.overrides import find
    from laptime.config.schema import OWN
    from laptime.runner.check import check

    if override := find(args.overrides, "sweep.dry_run", "sweep.resume", "hydra.run.dir", "hydra.sweep.dir"):
        raise UserError(f"{override.text}: has no effect here. Leave it out.")
    tuned_key = {"batch_size": "training.batch_size", "lr": "optimizer.lr"}[args.what]
    if override := find(args.overrides, tuned_key):
        raise UserError(f"{override.text}: is the value that tune finds. Leave it out.")
    add_user_modules(args.config_dir)
    with hydra_session(args.config_dir) as hydra:
        config = check(compose(hydra, args.overrides), args.overrides)
    if config.task.name == OWN:
        raise UserError(
            "task=own: tune knows only Laptime's own training steps. Use Lightning's Tuner, or sweep: "
            "-m task.module.lr=0.1,0.01"
        )
    if config.training.checkpoint is not None:
        raise UserError(
            f"training.checkpoint={config.training.checkpoint}: tune can't load a checkpoint; it "
            "starts from random weights. Leave it out."
        )
    world_size = config.strategy.world_size
    if world_size not in (1, "auto"):
        raise UserError(
            f"strategy.world_size={world_size}: tune runs in one process. Leave it out. To train with "
            "the tuned batch size on each rank, add training.batch_scope=per_rank to the training."
        )
    if args.what == "lr" and "lr" not in config.optimizer:
        raise UserError(f"optimizer={config.optimizer.get('_target_')}: has no lr. Use another optimizer.")
    return config


def _number(flag: str, text: str, rule: str, above: float = 0.0) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not above < value < math.inf:
        raise UserError(f"{flag} {text}: must be {rule}.")
    return value


def _steps(text: str) -> int:
    starting.hand_over()
    lowest, highest = 20, 100_000
    if not text.isdecimal() or not lowest <= int(text) <= highest:
        raise UserError(f"--steps {text}: must be a whole number from {lowest} to {highest:,}, e.g. 100.")
    return int(text)


def _file(text: str) -> Path:
    path = Path(text)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--plot {text}: must end in .png, .svg or .pdf.")
    if not path.parent.is_dir():
        raise UserError(f"--plot {text}: there is no folder {path.parent}.")
    return path


if __name__ == "__main__":
    run_command(main)
