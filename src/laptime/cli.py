"""The entry point: what `python train.py`, `python -m laptime` and `laptime.run` do with what was typed.

Nothing is written before what was typed is known to be right, and torch is loaded only where something is trained.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laptime.errors import Interrupted, RunFailed, UserError
from laptime.text import format_os_error

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra
    from hydra.types import TaskFunction
    from omegaconf import DictConfig

    from laptime.config.schema import Config
    from laptime.record.directory import RunDir
    from laptime.record.run_record import RunRecord

from laptime.sweeps.command import refuse_resume_in_a_file, resume_sweep, resumed_sweep, run_sweep


def run(overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Train and measure once, from Python: what `python train.py OVERRIDES` does.

        record = laptime.run(["model=cnn", "training.epochs=1"])
        record["timing"]["epoch_time_s"]

    Args:
        overrides: as on the command line: group=option, key=value.

    Returns:
        The record of the run, as run.json holds it; its `run_dir` is the run's directory.

    Raises:
        UserError: what was asked for can't be done; nothing was left behind.
        TrainingFailed: the loss became infinite or not a number; the record says where.
        KeyboardInterrupt: the run was interrupted; the record says so.
    """
    from laptime.config.quoting import quote_for_hydra
    from laptime.terminal import replace_unencodable

    replace_unencodable()
    if isinstance(overrides, str):
        raise UserError(f'laptime.run("{overrides}"): takes a list. Write laptime.run(["{overrides}"]).')
    try:
        overrides = list(overrides)  # of a generator, which gives them once
    except TypeError as error:
        raise UserError(f"laptime.run({overrides!r}): takes a list, like ['training.epochs=1'].") from error
    for override in overrides:
        if not isinstance(override, str):
            raise UserError(f"laptime.run([{override!r}]): an override is text, like 'training.epochs=1'.")
    command = ["laptime.run", *overrides]
    try:
        return _run_once(quote_for_hydra(overrides), time.time(), command).to_json()
    except Interrupted as interruption:
        raise KeyboardInterrupt(str(interruption)) from None
    except UserError as error:
        raise error from None


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Ends the process: 0 completed, 1 failed, 2 a mistake in what was typed, 128 + n signal n."""
    from laptime.ranks import torchrun
    from laptime.terminal import replace_unencodable

    replace_unencodable()
    try:
        _end_with_a_code(list(sys.argv[1:] if arguments is None else arguments))
    except SystemExit as end:
        if torchrun.is_joined():
            # Without Python's own shutdown, in which threads that talked to other ranks have ended completed ones.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise


def _end_with_a_code(arguments: list[str]) -> None:
    try:
        sys.exit(_main(arguments))
    except UserError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (RunFailed, Interrupted) as error:  # the log has said what happened
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, a folder that is gone
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {format_os_error(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _main(arguments: list[str]) -> int:
    from hydra._internal.utils import get_args_parser

    from laptime.config import security  # noqa: F401  reads what is trusted, before a configuration can change it
    from laptime.config.compose import (
        add_user_modules,
        compose,
        hydra_session,
        resolve,
        run_hydra_main,
        without_hydra,
    )
    from laptime.config.quoting import quote_for_hydra, refuse_dashes
    from laptime.config.validate import validate
    from laptime.sweeps.sweep import command_line

    if "--version" in arguments:  # of the parser it would be Hydra's
        from laptime.version import __version__

        print(f"laptime {__version__}")
        return 0
    parser = get_args_parser()
    refuse_dashes(arguments, parser)
    args = parser.parse_intermixed_args(arguments)
    _refuse_unused_flags(args)
    # Hydra's own parser wants what is not a flag in one piece.
    flags = [each for each in arguments if each not in args.overrides]
    args.overrides = quote_for_hydra(args.overrides)
    arguments = [*flags, *args.overrides]
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise UserError("the current folder is gone. Change to one that exists.") from error
    add_user_modules(args.config_dir)
    if args.cfg and args.multirun:
        raise UserError(
            "--cfg: shows what one run would use. Leave -m out, and give each key one value; sweep.dry_run=true lists "
            "the runs of a sweep."
        )
    if args.cfg or args.help or args.info:
        with hydra_session(args.config_dir) as hydra:
            composed = compose(hydra, args.overrides, args.config_name)
            if args.cfg:
                validate(resolve(without_hydra(composed)))
    if args.cfg or args.help or args.hydra_help or args.info or args.shell_completion:
        run_hydra_main(arguments, lambda cfg: None)
        return 0
    resumed, typed = resumed_sweep(args.overrides)
    if resumed is not None:
        return resume_sweep(args, resumed, typed)
    if not args.multirun:
        try:
            _run_once(args.overrides, _process_started_at(), command_line(), args)
            return 0
        except _IsSweep:  # an experiment or a primary configuration says so: hydra.mode
            pass
    return run_sweep(args)


class _IsSweep(Exception):
    """What was typed stands for a sweep, though without -m."""


def _refuse_unused_flags(args: argparse.Namespace) -> None:
    """Refuse those of Hydra's flags that would have no effect here.

    Raises:
        UserError: names the flag, and what to use instead.
    """
    if args.experimental_rerun is not None:
        raise UserError(
            "--experimental-rerun: unpickles a file, which could run anything, and is not supported. "
            "To repeat a run, type what its .hydra/overrides.yaml holds."
        )
    if args.config_path is not None:
        raise UserError(
            f"--config-path {args.config_path}: Laptime's own configuration is always read. "
            "Add a folder of yours with --config-dir."
        )
    if args.run and args.multirun:
        raise UserError("--run and --multirun: exclude each other. Leave one out.")
    if not args.cfg:
        for flag, value in (("--package", args.package), ("--resolve", args.resolve)):
            if value:
                raise UserError(f"{flag}: says how --cfg shows the configuration. Add --cfg job, or leave it out.")


def _run_once(
    overrides: list[str], started: float, command: list[str], args: argparse.Namespace | None = None
) -> "RunRecord":
    """Train once.

    Raises:
        UserError: what was asked for can't be done; nothing was left behind.
        _IsSweep: the configuration stands for a sweep.
    """
    from laptime.config.compose import CONFIG_NAME, experiment_of, hydra_session, hydra_value, without_hydra
    from laptime.config.identity import snapshot
    from laptime.config.overrides import find
    from laptime.ranks import torchrun
    from laptime.record.directory import RunDir
    from laptime.runner import fresh_processes
    from laptime.runner.check import check
    from laptime.runner.job import run_job

    if find(overrides, "hydra.mode") is not None:
        raise UserError("hydra.mode: is chosen by the flag -m (--multirun). Leave it out.")
    config_name = getattr(args, "config_name", None) or CONFIG_NAME
    run_dir: RunDir | None = None
    with hydra_session(getattr(args, "config_dir", None)) as hydra:
        composed = _composed_for_one_run(hydra, overrides, config_name, args)
        if not torchrun.is_joined() and _wants_processes(composed):
            fresh_processes.preload()
        config = check(composed, overrides)
        checked = snapshot(config)
        experiment = experiment_of(composed)
        _refuse_what_one_run_has_no_use_for(hydra, overrides, composed, config, config_name)
        chosen = find(overrides, "hydra.run.dir") is not None

        def reserve() -> str:
            nonlocal run_dir
            run_dir = RunDir(hydra_value(composed, "hydra.run.dir"), may_move=not chosen)
            return str(run_dir.path)

        path = torchrun.agree_on_run_dir(reserve, config.strategy.timeout_s) if torchrun.is_joined() else reserve()
        if run_dir is None:
            # A rank of torchrun's: Hydra's files are the first rank's matter.
            Path(path).mkdir(parents=True, exist_ok=True)
            return run_job(
                without_hydra(composed), Path(path), command, started, overrides, checked=checked, experiment=experiment
            )

        def task(cfg: "DictConfig") -> "RunRecord | BaseException":
            try:
                return run_job(cfg, Path(path), command, started, overrides, checked=checked, experiment=experiment)
            except (Exception, Interrupted) as error:  # around Hydra, which would print a line of its own
                return error

        return _run_in(run_dir, hydra, composed, task)


def _composed_for_one_run(
    hydra: "Hydra", overrides: list[str], config_name: str, args: argparse.Namespace | None
) -> "DictConfig":
    """What Hydra composes, if that is one run.

    Args:
        args: of the command line; None: of Python, where no sweep can be run.

    Raises:
        UserError: it can't be composed, or it stands for a sweep where none can be run.
        _IsSweep: it stands for a sweep.
    """
    from laptime.config.compose import compose, hydra_value, is_sweep_without_flag

    try:
        composed = compose(hydra, overrides, config_name)
        if hydra_value(composed, "hydra.mode") != "RunMode.MULTIRUN":
            return composed
    except UserError:  # of a value to sweep over, perhaps
        if args is None or not is_sweep_without_flag(hydra, overrides, config_name):
            raise
    if args is not None and not args.run:
        raise _IsSweep
    raise UserError("hydra.mode=MULTIRUN: the configuration stands for a sweep: python train.py -m runs it.")


def _refuse_what_one_run_has_no_use_for(
    hydra: "Hydra", overrides: list[str], composed: "DictConfig", config: "Config", config_name: str
) -> None:
    from laptime.runner import without_effect
    from laptime.sweeps.plan import params_of

    if config.measure.target_interval is not None:
        target = config.measure.target_interval
        raise UserError(f"measure.target_interval={target}: is for sweeps, which repeat their runs. Add -m.")
    refuse_resume_in_a_file(config)
    without_effect.check(hydra, overrides, [(composed, config)], False, config_name)
    if params := params_of(composed):
        raise UserError(f"hydra.sweeper.params: sweeps over {params[0]}. Add -m.")
    if config.sweep.dry_run:
        raise UserError("sweep.dry_run=true: is for sweeps. Add -m.")
    if config.sweep.notify:
        raise UserError(f"sweep.notify={config.sweep.notify}: is for sweeps. Add -m.")


def _run_in(run_dir: "RunDir", hydra: "Hydra", composed: "DictConfig", task: "TaskFunction") -> "RunRecord":
    """Let Hydra run a task in a directory, which goes if there is nothing to keep.

    Returns:
        What the task returns; an exception among that is raised.
    """
    from laptime.record.files import RUN_FILE
    from laptime.record.run_record import RunRecord
    from laptime.sweeps.hydra_jobs import run_once

    try:
        result = run_once(hydra, composed, run_dir.path, task)
    except BaseException:
        if not (run_dir.path / RUN_FILE).exists():  # ended before there was anything to keep
            run_dir.remove()
        raise
    if isinstance(result, UserError):
        run_dir.remove()
    if isinstance(result, BaseException):
        raise result
    assert isinstance(result, RunRecord)
    return result


def _wants_processes(composed: "DictConfig") -> bool:
    """Whether a single run will start ranks of its own, as far as can be said before it is checked."""
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
