"""python -m laptime.tune: a batch size that fits, a learning rate to start from, found by trying them."""

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from laptime.errors import UserError, exit_code_of

if TYPE_CHECKING:
    from laptime.config.schema import Config

_ABOUT = """\
Finds by trying, on this machine, what to train with. Takes train.py's overrides, and prints the line to go on with.

  batch_size   doubles the batch size until memory, the data set or --limit ends it: the largest that fits, and the
               smallest that is about as fast as the fastest
  lr           Lightning's range test: the learning rate at which the loss falls most steeply

Examples
  python -m laptime.tune batch_size device=cuda model=resnet18 training.precision=bf16-mixed
  python -m laptime.tune lr model=cnn optimizer=sgd --plot lr.png"""


# The flags of each of the two, with their defaults.
_FLAGS: dict[str, dict[str, str | None]] = {
    "batch_size": {"limit": "120"},
    "lr": {"lowest": "1e-6", "highest": "1", "steps": "100", "plot": None},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 where nothing was found, 2 for a mistake in what was typed, 130 for Ctrl-C."""
    from laptime.terminal import StderrHandler, replace_unencodable

    replace_unencodable()
    logging.basicConfig(handlers=[StderrHandler()], level=logging.WARNING, format="%(message)s")
    return exit_code_of(lambda: _run(_parsed(sys.argv[1:] if arguments is None else arguments)))


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    from laptime.config.quoting import quote_for_hydra, refuse_dashes

    parser = _parser()
    refuse_dashes(arguments, parser)
    args = parser.parse_intermixed_args(arguments)
    args.overrides = quote_for_hydra(args.overrides)
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m laptime.tune", description=_ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("batch_size", "lr"), help="what to find")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for train.py: group=option, key=value")
    parser.add_argument("--config-dir", metavar="DIR", help="a folder with options of your own, as for train.py")
    parser.add_argument(
        "--limit", metavar="S", help="batch_size: start nothing that ends after S seconds; default: 120"
    )
    parser.add_argument("--lowest", metavar="LR", help="lr: of the first step; default: 1e-6")
    parser.add_argument("--highest", metavar="LR", help="lr: of the last step; default: 1")
    parser.add_argument("--steps", metavar="N", help="lr: optimizer steps; default: 100")
    parser.add_argument("--plot", metavar="FILE", help="lr: draw loss over learning rate, as .png, .svg or .pdf")
    return parser


def _run(args: argparse.Namespace) -> int:
    for what, flags in _FLAGS.items():
        for flag, default in flags.items():
            if (value := getattr(args, flag)) is None:
                setattr(args, flag, default)
            elif what != args.what:
                raise UserError(f"--{flag} {value}: belongs to {what}. Leave it out.")
    limit_s = _number("--limit", args.limit, "a number of seconds above 0, like 120")
    lowest = _number("--lowest", args.lowest, "a learning rate above 0, like 1e-6")
    highest = _number("--highest", args.highest, "a learning rate above --lowest, like 1", above=lowest)
    num_steps = _steps(args.steps)
    plot = None if args.plot is None else _file(args.plot)
    config = _config(args)

    import pytorch_lightning as pl
    import torch

    from laptime.runner.rank_plan import threads_per_rank
    from laptime.terminal import ignore_broken_pipe
    from laptime.training.build import prepare_device
    from laptime.training.faults import translated_errors
    from laptime.tune import batch_size, lr, show

    typed = [*(["--config-dir", args.config_dir] if args.config_dir else []), *args.overrides]
    device = prepare_device(config)
    torch.set_num_threads(threads_per_rank(config))
    pl.seed_everything(config.seed, workers=False, verbose=False)
    with translated_errors(config), ignore_broken_pipe():
        if args.what == "batch_size":
            show.batch_sizes(batch_size.find(config, device, limit_s, show.trial), typed)
        else:
            tested = lr.find(config, device, lowest, highest, num_steps)
            if plot is not None:
                tested.plot(plot)
            show.lr(tested, typed, plot)
    return 0


def _config(args: argparse.Namespace) -> "Config":
    """What `train.py` would train with these overrides, checked."""
    from laptime.config import security  # noqa: F401  reads what is trusted, before a configuration can change it
    from laptime.config.compose import add_user_modules, compose, hydra_session
    from laptime.config.overrides import find
    from laptime.runner.check import check

    if typed := find(args.overrides, "sweep.dry_run", "sweep.resume", "hydra.run.dir", "hydra.sweep.dir"):
        raise UserError(f"{typed.text}: has no effect here. Leave it out.")
    found = {"batch_size": "training.batch_size", "lr": "optimizer.lr"}[args.what]
    if typed := find(args.overrides, found):
        raise UserError(f"{typed.text}: is what is to be found. Leave it out.")
    add_user_modules(args.config_dir)
    with hydra_session(args.config_dir) as hydra:
        config = check(compose(hydra, args.overrides), args.overrides)
    if config.training.checkpoint is not None:
        raise UserError(
            f"training.checkpoint={config.training.checkpoint}: only networks of random weights are tried. "
            "Leave it out."
        )
    world_size = config.strategy.world_size
    if world_size not in (1, "auto"):
        raise UserError(
            f"strategy.world_size={world_size}: what one process can do is found out. Leave it out; "
            "training.batch_scope=per_rank takes what was found for each rank."
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
    fewest, most = 20, 100_000
    if not text.isdecimal() or not fewest <= int(text) <= most:
        raise UserError(f"--steps {text}: must be a whole number from {fewest} to {most:,}, like 100.")
    return int(text)


def _file(text: str) -> Path:
    path = Path(text)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"--plot {text}: must end in .png, .svg or .pdf.")
    if not path.parent.is_dir():
        raise UserError(f"--plot {text}: there is no folder {path.parent}.")
    return path


if __name__ == "__main__":
    sys.exit(main())
