"""The command `laptime train`, which is also `python train.py`, and `laptime.run` for Python.

All arguments are checked before anything is written. torch is loaded only to train.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hydra._internal.utils import get_args_parser

from laptime import starting
from laptime.cli.dispatch import COMMANDS
from laptime.cli.show import print_instead
from laptime.command_line import program, refuse, typed_command
from laptime.config import (
    security,  # noqa: F401  reads the allow-list before a configuration can change it
    vouching,
)
from laptime.config.compose import (
    CONFIG_NAME,
    add_user_modules,
    compose,
    experiment_of,
    hydra_session,
    hydra_value,
    is_sweep_without_flag,
    without_hydra,
)
from laptime.config.identity import snapshot
from laptime.config.overrides import find
from laptime.config.quoting import quote_for_hydra, refuse_dashes
from laptime.errors import Interrupted, RunFailed, UserError, exit_code_of, ignore_broken_pipe
from laptime.ranks import torchrun
from laptime.record.directory import RunDir
from laptime.record.files import RUN_FILE
from laptime.record.run_record import RunRecord
from laptime.runner import fresh_processes, without_effect
from laptime.runner.check import check_classes, check_settings
from laptime.runner.job import run_job
from laptime.sweeps.command import refuse_resume_in_a_file, resume_sweep, resumed_sweep, run_sweep
from laptime.sweeps.hydra_jobs import run_once
from laptime.sweeps.plan import params_of
from laptime.terminal import replace_unencodable
from laptime.version import __version__

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra
    from hydra.types import TaskFunction
    from omegaconf import DictConfig

    from laptime.config.schema import Config


def run(overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Train and measure once, as `laptime train OVERRIDES` does.

        record = laptime.run(["model=cnn", "training.epochs=1"])
        record["timing"]["epoch_time_s"]

    Args:
        overrides: group=option or key=value, as on the command line.

    Returns:
        The content of run.json; its `run_dir` is the run's directory.

    Raises:
        UserError: the request is invalid; no files were written.
        TrainingFailed: the loss became infinite or not a number; the record says where.
        KeyboardInterrupt: the run was interrupted; the record says so.
    """
    replace_unencodable()
    if isinstance(overrides, str):
        raise UserError(f'laptime.run("{overrides}"): must be a list. Write laptime.run(["{overrides}"]).')
    try:
        overrides = list(overrides)  # a generator yields them only once
    except TypeError as error:
        raise UserError(f"laptime.run({overrides!r}): must be a list, like ['training.epochs=1'].") from error
    for override in overrides:
        if not isinstance(override, str):
            raise UserError(f"laptime.run([{override!r}]): an override must be a string, like 'training.epochs=1'.")
    command = ["laptime.run", *overrides]
    vouching.vouch_for(None)  # a command that ran earlier in this process may have typed a folder
    try:
        return _run_once(quote_for_hydra(overrides), time.time(), command).to_json()
    except Interrupted as interruption:
        raise KeyboardInterrupt(str(interruption)) from None
    except UserError as error:
        raise error from None


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Train as the command line says.

    The exit code is 0 if it completed, 1 if it failed, 2 for a mistake in the arguments, and 128 + n for signal n.
    """
    replace_unencodable()
    try:
        _exit(list(sys.argv[1:] if arguments is None else arguments))
    except SystemExit as end:
        if torchrun.is_joined():
            # Skip Python's own shutdown: threads that had talked to other ranks have crashed completed ranks in it.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise


def _exit(arguments: list[str]) -> NoReturn:
    def train() -> int:
        try:
            return _main(arguments)
        except (RunFailed, Interrupted) as error:  # the log already says what happened
            return error.exit_code

    sys.exit(exit_code_of(train))


def _main(arguments: list[str]) -> int:
    if "--version" in arguments:  # Hydra's parser would print Hydra's version
        with ignore_broken_pipe():
            print(f"laptime {__version__}")
        return 0
    if arguments[-1:] == ["--"]:
        raise UserError("--: must be followed by overrides (key=value), or left out.")
    parser = make_parser()
    refuse_dashes(arguments, parser)
    args = parser.parse_intermixed_args(arguments)
    _refuse_unused_flags(args)
    misplaced = next((word for word in args.overrides if word in COMMANDS), None)
    if misplaced is not None:
        raise UserError(f"{misplaced}: the command must come first: {program()} {misplaced} ...")
    args.overrides = quote_for_hydra(args.overrides)
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise UserError("the current folder has been deleted. Change to one that exists.") from error
    add_user_modules(args.config_dir)
    if args.cfg and args.multirun:
        raise UserError(
            "--cfg: shows the configuration of one run. Leave out -m and give each key one value; "
            "sweep.dry_run=true lists the runs of a sweep."
        )
    if args.cfg or args.help or args.hydra_help or args.info or args.shell_completion:
        print_instead(args, parser)
        return 0
    resumed, cli_overrides = resumed_sweep(args.overrides)
    if resumed is not None:
        return resume_sweep(args, resumed, cli_overrides)
    if not args.multirun:
        try:
            _run_once(args.overrides, _process_started_at(), typed_command(), args)
            return 0
        except _IsSweep:  # an experiment or the primary configuration sets hydra.mode
            pass
    return run_sweep(args)


def make_parser() -> argparse.ArgumentParser:
    """Return Hydra's parser, with Laptime's error messages."""
    parser: argparse.ArgumentParser = get_args_parser()
    parser.prog = program("train")
    parser.error = partial(refuse, parser)  # type: ignore[method-assign]
    return parser


class _IsSweep(Exception):
    """The configuration makes a sweep, though -m was not typed."""


def _refuse_unused_flags(args: argparse.Namespace) -> None:
    """Refuse flags of Hydra that have no effect in Laptime.

    Raises:
        UserError: such a flag is given; names the flag and its replacement.
    """
    if args.experimental_rerun is not None:
        raise UserError(
            "--experimental-rerun: not supported, because unpickling a file can run any code. "
            "To repeat a run, type the overrides in its .hydra/overrides.yaml."
        )
    if args.config_path is not None:
        raise UserError(
            f"--config-path {args.config_path}: can't replace Laptime's own configuration. "
            "Add your own folder with --config-dir."
        )
    if args.run and args.multirun:
        raise UserError("--run and --multirun: can't be combined. Leave one out.")
    if not args.cfg:
        for flag, value in (("--package", args.package), ("--resolve", args.resolve)):
            if value:
                raise UserError(f"{flag}: only works with --cfg. Add --cfg job, or leave it out.")


def _run_once(
    overrides: list[str], started: float, command: list[str], args: argparse.Namespace | None = None
) -> RunRecord:
    """Train once.

    Raises:
        UserError: the request is invalid; no files were written.
        _IsSweep: the configuration makes a sweep.
    """
    if find(overrides, "hydra.mode") is not None:
        raise UserError("hydra.mode: not supported. Leave it out; add -m (--multirun) for a sweep.")
    config_name = getattr(args, "config_name", None) or CONFIG_NAME
    run_dir: RunDir | None = None
    with hydra_session(getattr(args, "config_dir", None)) as hydra:
        composed = _composed_for_one_run(hydra, overrides, config_name, args)
        config = check_settings(composed, overrides)
        if not torchrun.is_joined() and _wants_processes(composed):
            fresh_processes.preload()
        _refuse_sweep_keys(hydra, overrides, composed, config, config_name)
        check_classes([config], overrides)
        starting.hand_over()
        checked = snapshot(config)
        experiment = experiment_of(composed)
        chosen = find(overrides, "hydra.run.dir") is not None

        def reserve() -> str:
            nonlocal run_dir
            run_dir = RunDir(hydra_value(composed, "hydra.run.dir"), may_move=not chosen)
            return str(run_dir.path)

        path = torchrun.agree_on_run_dir(reserve, config.strategy.timeout_s) if torchrun.is_joined() else reserve()
        if run_dir is None:
            # torchrun's other ranks: the first rank writes Hydra's files.
            Path(path).mkdir(parents=True, exist_ok=True)
            return run_job(
                without_hydra(composed), Path(path), command, started, overrides, checked=checked, experiment=experiment
            )

        def task(cfg: "DictConfig") -> RunRecord | BaseException:
            try:
                return run_job(cfg, Path(path), command, started, overrides, checked=checked, experiment=experiment)
            except (Exception, Interrupted) as error:  # returned, because Hydra would print an exception itself
                return error

        return _run_in(run_dir, hydra, composed, task)


def _composed_for_one_run(
    hydra: "Hydra", overrides: list[str], config_name: str, args: argparse.Namespace | None
) -> "DictConfig":
    """Compose the configuration of one run.

    Args:
        args: the parsed command line; None: called from Python, which can't run sweeps.

    Raises:
        UserError: the configuration is wrong, or makes a sweep where none can run.
        _IsSweep: it makes a sweep.
    """
    try:
        composed = compose(hydra, overrides, config_name)
        if hydra_value(composed, "hydra.mode") != "RunMode.MULTIRUN":
            return composed
    except UserError as error:  # perhaps one key has several values, to sweep over
        if args is None or not is_sweep_without_flag(hydra, overrides, config_name, error):
            raise
    if args is not None and not args.run:
        raise _IsSweep
    raise UserError(f"hydra.mode=MULTIRUN: the configuration makes a sweep. Run it with {program('train')} -m.")


def _refuse_sweep_keys(
    hydra: "Hydra", overrides: list[str], composed: "DictConfig", config: "Config", config_name: str
) -> None:
    if config.measure.target_interval is not None:
        target = config.measure.target_interval
        raise UserError(f"measure.target_interval={target}: only works in sweeps, which repeat runs. Add -m.")
    refuse_resume_in_a_file(config)
    without_effect.check(hydra, overrides, [lambda: composed], [config], is_sweep=False, config_name=config_name)
    if params := params_of(composed):
        raise UserError(f"hydra.sweeper.params: sweeps over {params[0]}. Add -m.")
    if config.sweep.dry_run:
        raise UserError("sweep.dry_run=true: only works in sweeps. Add -m.")
    if config.sweep.notify:
        raise UserError(f"sweep.notify={config.sweep.notify}: only works in sweeps. Add -m.")


def _run_in(run_dir: RunDir, hydra: "Hydra", composed: "DictConfig", task: "TaskFunction") -> RunRecord:
    """Let Hydra run a task in a directory; remove the directory if the task leaves no record.

    Returns:
        The record that the task returns. If the task returns an exception, it is raised.
    """
    try:
        result = run_once(hydra, composed, run_dir.path, task)
    except BaseException:
        if not (run_dir.path / RUN_FILE).exists():
            run_dir.remove()
        raise
    if isinstance(result, UserError):
        run_dir.remove()
    if isinstance(result, BaseException):
        raise result
    assert isinstance(result, RunRecord)
    return result


def _wants_processes(composed: "DictConfig") -> bool:
    """Whether a run will probably start rank processes."""
    strategy = composed.strategy
    return bool(strategy.wrap_single_rank) or strategy.world_size not in (1, "auto")


def _process_started_at() -> float:
    """`time.time()` when this process started; psutil's own figure is off by up to a second on Linux."""
    import psutil

    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return time.time() - age_s
    except (OSError, ValueError, AttributeError):
        return psutil.Process().create_time()
