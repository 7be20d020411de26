"""The entry point: what `python train.py`, `python -m laptime` and `laptime.run` do with what was typed.

Nothing is written before what was typed is known to be right, and torch is loaded only where something is trained.
"""

import argparse
import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from laptime.errors import Interrupted, RankFailed, TrainingFailed, UserError, in_words
from laptime.secrets import mask_command, mask_text
from laptime.stopping import SIGNALS

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

    from laptime.resume_sweep import EarlierSweep, Step

log = logging.getLogger(__name__)


def run(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Train and measure once, from Python: what `python train.py OVERRIDES` does.

        record = laptime.run(["model=cnn", "training.epochs=1"])
        record["timing"]["epoch_time_s"]

    Args:
        overrides: as on the command line: group=option, key=value.

    Returns:
        The record of the run, as run.json holds it; its config's `run_dir` says where everything lies.

    Raises:
        UserError: what was asked for can't be done; nothing was left behind.
        TrainingFailed: the loss became infinite or not a number; the record says where.
        KeyboardInterrupt: the run was interrupted; the record says so.
    """
    if isinstance(overrides, str):
        raise UserError(f'laptime.run("{overrides}"): takes a list. Write laptime.run(["{overrides}"]).')
    command = ["laptime.run", *overrides]
    try:
        return _run_once(list(overrides), time.time(), command)
    except Interrupted as interruption:
        raise KeyboardInterrupt(str(interruption)) from None
    except UserError as error:
        raise error from None


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Ends the process: 0 completed, 1 failed, 2 a mistake in what was typed, 128 + n signal n."""
    from laptime import torchrun

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
    except (TrainingFailed, RankFailed, Interrupted) as error:  # the log has said what happened
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, a folder that is gone
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {in_words(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _main(arguments: list[str]) -> int:
    from hydra._internal.utils import get_args_parser
    from hydra.core.plugins import Plugins

    from laptime import security  # noqa: F401  reads what is trusted, before a configuration can change it
    from laptime.compose import compose, hydra_session, resolve, without_hydra
    from laptime.config import validate

    args = get_args_parser().parse_args(arguments)
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise UserError("the current folder is gone. Change to one that exists.") from error
    # Hydra looks for plugins now: later it would run what lies as hydra_plugins/ in the folders that are added below.
    Plugins.instance()
    # A model of the user's own may lie where the command was typed, or beside the user's configuration.
    sys.path += [str(Path(folder).absolute()) for folder in (args.config_dir, ".") if folder is not None]
    if args.cfg or args.help or args.info:
        with hydra_session(args.config_dir) as hydra:
            composed = compose(hydra, args.overrides, args.config_name)
            if args.cfg:
                validate(resolve(without_hydra(composed)))
    if args.cfg or args.help or args.hydra_help or args.info or args.shell_completion:
        _hand_over_to_hydra(arguments, lambda cfg: None)
        return 0
    if args.multirun or _is_sweep(args):
        arguments = arguments if args.multirun else ["-m", *arguments]
        resumed, typed = _resumed_sweep(args.overrides)
        if resumed is None:
            return _sweep(args, arguments)
        flags = [argument for argument in arguments if argument not in args.overrides]
        return _resume_sweep(args, flags, resumed, typed)
    _run_once(args.overrides, _process_started_at(), _command(), args)
    return 0


def _is_sweep(args: argparse.Namespace) -> bool:
    """Whether what was typed stands for a sweep without -m: some experiments do."""
    from laptime.compose import compose, hydra_session, hydra_value

    if any(override.startswith("sweep.resume=") and override != "sweep.resume=null" for override in args.overrides):
        return True
    experiments = [override for override in args.overrides if override.startswith("experiment=")]
    if not experiments:
        return False
    with hydra_session(args.config_dir) as hydra:  # of what else was typed some may be values to sweep over
        return hydra_value(compose(hydra, experiments, args.config_name), "hydra.mode") == "RunMode.MULTIRUN"


def _run_once(
    overrides: list[str], started: float, command: list[str], args: argparse.Namespace | None = None
) -> dict[str, Any]:
    from laptime import fresh_processes, slurm, torchrun
    from laptime.compose import CONFIG_NAME, compose, hydra_session, hydra_value, without_hydra
    from laptime.record import RUN_FILE
    from laptime.run_dir import RunDir

    if any(override.lstrip("+").startswith("hydra.mode=") for override in overrides):
        raise UserError("hydra.mode: is chosen by the flag -m (--multirun). Leave it out.")
    if not torchrun.is_joined():
        slurm.require_one_task()
    config_name = getattr(args, "config_name", None) or CONFIG_NAME
    run_dir: RunDir | None = None
    with hydra_session(getattr(args, "config_dir", None)) as hydra:
        composed = compose(hydra, overrides, config_name)
        if not torchrun.is_joined() and _wants_processes(composed):
            fresh_processes.load_ahead()
        config = _check(composed, overrides)
        if config["measure"]["target_interval"] is not None:
            target = config["measure"]["target_interval"]
            raise UserError(f"measure.target_interval={target}: is for sweeps, which repeat their runs. Add -m.")
        if config["sweep"]["resume"] is not None:
            raise UserError(f"sweep.resume={config['sweep']['resume']}: is for the command line: train.py -m.")
        for key in ("dry_run", "notify"):
            if config["sweep"][key]:
                raise UserError(f"sweep.{key}={str(config['sweep'][key]).lower()}: is for sweeps. Add -m.")
        chosen = any(override.lstrip("+").startswith("hydra.run.dir=") for override in overrides)

        def reserve() -> str:
            nonlocal run_dir
            run_dir = RunDir(hydra_value(composed, "hydra.run.dir"), may_move=not chosen)
            return str(run_dir.path)

        path = (
            torchrun.agree_on_run_dir(reserve, config["strategy"]["timeout_s"]) if torchrun.is_joined() else reserve()
        )
        if run_dir is None:
            # A rank of torchrun's: Hydra's files are the first rank's matter.
            Path(path).mkdir(parents=True, exist_ok=True)
            return _train(without_hydra(composed), Path(path), command, started, overrides)

        def task(cfg: "DictConfig") -> dict[str, Any] | Exception:
            try:
                return _train(cfg, Path(path), command, started, overrides)
            except Exception as error:  # Hydra would print a line of its own: carried around it, raised below.
                return error

        try:
            result = hydra.run(config_name, task, [*overrides, f"hydra.run.dir={_quote(Path(path))}"]).return_value
        except BaseException:
            if not (Path(path) / RUN_FILE).exists():  # ended before there was anything to keep
                run_dir.remove()
            raise
    if isinstance(result, UserError):
        run_dir.remove()
    if isinstance(result, Exception):
        raise result
    record: dict[str, Any] = result
    return record


def _wants_processes(composed: "DictConfig") -> bool:
    """Whether a single run will start ranks of its own, as far as can be said before it is checked."""
    strategy = composed.strategy
    return bool(strategy.wrap_single_rank) or strategy.world_size not in (1, "auto")


def compose_and_check(overrides: Sequence[str]) -> dict[str, Any]:
    """What `python train.py OVERRIDES` would train, checked as far as that goes without building anything.

    Returns:
        The configuration, resolved, as plain values.

    Raises:
        UserError: names what is wrong.
    """
    from laptime.compose import compose, hydra_session

    with hydra_session() as hydra:
        return _check(compose(hydra, overrides), overrides)


def _check(composed: "DictConfig", typed: Sequence[str]) -> dict[str, Any]:
    """Check all that can be said about a composed configuration without building anything.

    Args:
        typed: the overrides of the command line, alone: what a file adds is not trusted.
    """
    from laptime.compose import tidy

    try:
        return _checked(composed, typed)
    except UserError as error:
        raise UserError(tidy(str(error), typed)) from error


def _checked(composed: "DictConfig", typed: Sequence[str]) -> dict[str, Any]:
    from laptime import security
    from laptime.compose import resolve, without_hydra
    from laptime.config import validate

    cfg = without_hydra(composed)
    if cfg.get("run_dir") is not None:
        raise UserError(
            f"run_dir={cfg.run_dir}: is filled in when the run starts. Choose the place with hydra.run.dir."
        )
    cfg.run_dir = "."  # the real one is reserved when all is known to be right
    config = resolve(cfg)
    validate(config)
    security.check(config, typed)
    from laptime.training import check_open_groups  # loads torch: after all that can be said without

    check_open_groups(config)
    return config


def _train(
    cfg: "DictConfig",
    run_dir: Path,
    command: Sequence[str],
    started: float,
    typed: Sequence[str],
    sweep_world_size: int | None = None,
    goes_on: bool = False,
) -> dict[str, Any]:
    from laptime import security, torchrun
    from laptime.compose import resolve
    from laptime.console import logging_to, print_results, unread
    from laptime.launch import launch
    from laptime.secrets import secret_values

    cfg.run_dir = str(run_dir)
    cfg.run_label = _folder_name(mask_text(cfg.run_label))
    rank = torchrun.rank() if torchrun.is_joined() else 0
    config = resolve(cfg)
    security.check(config, typed)  # once more: in the course of a long sweep its files may have changed
    with logging_to(run_dir, rank, secrets=secret_values(config)):
        record = launch(config, run_dir, command, started, sweep_world_size, goes_on)
    if rank == 0:
        with unread():
            print_results(record, run_dir)
    return record


def _sweep(args: argparse.Namespace, arguments: list[str]) -> int:
    """Check every job of a sweep, then run them."""
    from laptime import fresh_processes, slurm, torchrun
    from laptime.compose import hydra_session, hydra_value
    from laptime.launch import num_ranks
    from laptime.resume_sweep import Step
    from laptime.run_dir import RunDir, use

    if torchrun.is_joined():
        raise UserError("-m: torchrun's ranks belong to one run. Start one torchrun per run, or the sweep without it.")
    slurm.require_one_task()
    with hydra_session(args.config_dir) as hydra:
        jobs, composed = _compose_sweep(hydra, args.overrides, args.config_name)
        if twice := [job for job, count in Counter(map(tuple, jobs)).items() if count > 1]:
            raise UserError(f"{' '.join(twice[0])}: the same run twice. Repeats of a run differ by their seed.")
        fresh_processes.load_ahead()
        configs = [_check(each, args.overrides) for each in composed]
        sweep_world_size = max(num_ranks(config) for config in configs)
        if any(config["sweep"]["dry_run"] for config in configs):
            steps = [Step(number, job, "new") for number, job in enumerate(jobs)]
            return _show_what_would_be_done(steps, configs, jobs, sweep_world_size)
        chosen = any(override.lstrip("+").startswith("hydra.sweep.dir=") for override in args.overrides)
        sweep_dir = RunDir(hydra_value(composed[0], "hydra.sweep.dir"), may_move=not chosen, key="hydra.sweep.dir")
        use(sweep_dir.path)
    command = configs[0]["sweep"]["notify"]
    return _run_sweep(arguments, args.overrides, sweep_dir.path, jobs, sweep_world_size, command)


def _resumed_sweep(overrides: list[str]) -> "tuple[EarlierSweep | None, list[str]]":
    """The sweep that is to be gone on with, None: a new one is to be started, and what is typed besides."""
    if not any(override.lstrip("+").startswith("sweep.resume=") for override in overrides):
        return None, overrides
    from laptime.resume_sweep import EarlierSweep, asked_for

    asked, typed = asked_for(overrides)
    return None if asked is None else EarlierSweep(asked), typed


def _resume_sweep(args: argparse.Namespace, flags: list[str], sweep: "EarlierSweep", typed: list[str]) -> int:
    """Say what becomes of each job of an earlier sweep, then run those that are not completed.

    Args:
        flags: what was typed, without overrides.
        typed: overrides besides `sweep.resume`.
    """
    from laptime import fresh_processes, resume_sweep, slurm, torchrun
    from laptime.analysis.sweep_callback import report_sweep
    from laptime.compose import compose, hydra_session, resolve, without_hydra

    if torchrun.is_joined():
        raise UserError("sweep.resume: is for a sweep of runs that Laptime starts. Leave torchrun out.")
    slurm.require_one_task()
    # What is said anew each time makes no other jobs.
    of_now = [override for override in typed if override.lstrip("+").partition("=")[0] in resume_sweep.OF_NOW]
    added = [override for override in typed if override not in of_now]
    asked = [resume_sweep.merged(each, of_now) for each in sweep.invocations(added)]
    with hydra_session(args.config_dir) as hydra:
        pairs: list[tuple[list[str], DictConfig]] = []
        for each in asked:
            try:
                pairs += zip(*_compose_sweep(hydra, each, args.config_name), strict=True)
            except UserError as error:
                raise UserError(f"{error}\nThe jobs of {sweep.path.name} follow from: {' '.join(each)}") from error
        if not added:
            unfinished = [resume_sweep.merged(each, of_now) for each in sweep.unfinished()]
            pairs += [(each, compose(hydra, each, args.config_name)) for each in unfinished]
        fresh_processes.load_ahead()
        jobs = []
        for overrides, composed in pairs:
            _check(composed, typed)
            cfg = without_hydra(composed)
            cfg.run_dir = str(sweep.path / "run")  # any that nothing else in the configuration can be
            jobs.append(resume_sweep.Job(overrides, resolve(cfg)))
    sweep_world_size = sweep.sweep_world_size([job.config for job in jobs])
    steps = sweep.plan(jobs, sweep_world_size)
    known = resume_sweep.jobs_ever(sweep.runs, jobs)
    if any(job.config["sweep"]["dry_run"] for job in jobs):
        by_overrides = {tuple(job.overrides): job.config for job in jobs}
        configs = [by_overrides[tuple(step.overrides)] for step in steps]
        return _show_what_would_be_done(steps, configs, known, sweep_world_size)
    for step in sorted([*steps, *sweep.not_asked_for(steps)], key=lambda step: step.number):
        print(f"run {step.number} ({_swept(step.overrides, known)}): {step.decision}", file=sys.stderr)
    todo = {step.number: step for step in steps if not step.is_done}
    repeats = any(job.config["measure"]["target_interval"] is not None for job in jobs)
    if not todo:
        print(f"\nall {len(steps)} runs are completed", file=sys.stderr)
        if not repeats:
            report_sweep(sweep.path)
            return 0
    sweep.keep_what_was_typed(asked[-1])
    command = jobs[0].config["sweep"]["notify"]
    return _run_sweep([*flags, *asked[-1]], typed, sweep.path, known, sweep_world_size, command, todo)


def _show_what_would_be_done(
    steps: "Sequence[Step]", configs: Sequence[Mapping[str, Any]], jobs: list[list[str]], sweep_world_size: int
) -> int:
    """Print each run of a sweep, what becomes of it and what it will take; `configs` in the order of `steps`."""
    from laptime import dry_run
    from laptime.console import unread, wide_console
    from laptime.estimate import estimate, known_runs
    from laptime.launch import will_be_hashed
    from laptime.resume import RESULT_FOLDERS

    known = known_runs(RESULT_FOLDERS)
    planned = []
    for step, config in zip(steps, configs, strict=True):
        guess = estimate(will_be_hashed({**config, "run_dir": None}, sweep_world_size), known)
        swept = _swept(step.overrides, jobs)
        planned.append(dry_run.Planned(step.number, swept, step.decision, step.is_done, guess))
    with unread():
        dry_run.show(planned, wide_console())
    return 0


def _compose_sweep(
    hydra: "Hydra", overrides: list[str], config_name: str | None
) -> "tuple[list[list[str]], list[DictConfig]]":
    """The overrides of each job of a sweep, and what they compose to."""
    from laptime.compose import compose

    jobs = list(_sweep_jobs(hydra, overrides))
    first = compose(hydra, jobs[0], config_name)
    if params := first.hydra.sweeper.get("params"):  # an experiment's; what is typed comes after it
        jobs = list(_sweep_jobs(hydra, [*(f"{key}={value}" for key, value in params.items()), *overrides]))
        first = compose(hydra, jobs[0], config_name)
    return jobs, [first, *(compose(hydra, overrides, config_name) for overrides in jobs[1:])]


def _run_sweep(
    arguments: list[str],
    typed: Sequence[str],
    sweep_dir: Path,
    jobs: list[list[str]],
    sweep_world_size: int,
    command: str | None,
    steps: "Mapping[int, Step] | None" = None,
) -> int:
    """Let Hydra run the jobs one after the other; a failed one doesn't stop the others.

    Args:
        arguments: for Hydra's command line.
        typed: the overrides of the command line, alone.
        jobs: overrides of every job of the sweep.
        command: to tell how it goes (`sweep.notify`).
        steps: what is to be done of an earlier sweep that is gone on with, by number; None: this is a new one.
    """
    from hydra.core.hydra_config import HydraConfig

    from laptime.analysis.sweep_callback import report_sweep
    from laptime.console import relative, unread
    from laptime.notify import notify
    from laptime.record import read_plan, write_plan
    from laptime.resume_sweep import set_aside
    from laptime.run_dir import RunDir

    swept_of = dict(enumerate(jobs)) if steps is None else {number: step.overrides for number, step in steps.items()}
    write_plan(sweep_dir, read_plan(sweep_dir) | {number: _swept(each, jobs) for number, each in swept_of.items()})
    num_jobs = len(jobs) if steps is None else len(steps)
    failed: list[str] = []
    num_started = num_completed = exit_code = 0

    def task(cfg: "DictConfig") -> float | None:
        nonlocal exit_code, num_started, num_completed
        num_started += 1
        job = HydraConfig.get()
        step = (steps or {}).get(job.job.num)
        swept = _swept(list(job.overrides.task), jobs)
        print(f"\nrun {job.job.num} of the sweep: {swept}", file=sys.stderr)
        try:
            cfg.run_label = sweep_label(list(job.overrides.task), jobs)
            if step is None or step.run is None:
                path, goes_on = RunDir(job.runtime.output_dir, may_move=False).path, False
            else:
                path, goes_on = step.run.path, step.goes_on
                if goes_on:
                    cfg.run_label = step.run.label
                else:
                    set_aside(path)
            result = objective(_train(cfg, path, _command(), time.time(), typed, sweep_world_size, goes_on))
            num_completed += 1
            return result
        except Interrupted as interruption:
            sys.exit(interruption.exit_code)
        except Exception as error:
            fail(f"{job.job.num} ({swept})", error, cfg.sweep.on_failure, _secrets_of(cfg))
        return None

    def fail(run: str, error: Exception, on_failure: str, secrets: Collection[str] = ()) -> None:
        nonlocal exit_code
        if isinstance(error, UserError):
            print(f"error: {mask_text(str(error), secrets)}", file=sys.stderr)
        elif isinstance(error, OSError):
            print(f"error: {in_words(error)}", file=sys.stderr)
        elif not isinstance(error, TrainingFailed | RankFailed):
            traceback.print_exception(error)
        failed.append(mask_text(f"{run}: {error}", secrets))
        notify(command, "run-failed", sweep_dir, f"run {failed[-1]}")
        exit_code = max(exit_code, getattr(error, "exit_code", 1))
        if on_failure == "stop":
            sys.exit(exit_code)

    def could_not_start(number: int, overrides: list[str], error: OSError, on_failure: str) -> None:
        nonlocal num_started
        num_started += 1
        swept = _swept(overrides, jobs)
        print(f"\nrun {number} of the sweep: {swept}", file=sys.stderr)
        fail(f"{number} ({swept})", error, on_failure)

    task.could_not_start = could_not_start  # type: ignore[attr-defined]
    if steps is not None:
        task.jobs = {number: step.overrides for number, step in steps.items()}  # type: ignore[attr-defined]
    try:
        with _ending_by_signals():
            _hand_over_to_hydra([*arguments, f"hydra.sweep.dir={_quote(sweep_dir)}"], task)
    except SystemExit as end:
        exit_code = end.code if isinstance(end.code, int) else 1
        if num_started:  # Hydra's callback is not called then
            report_sweep(sweep_dir)
    if failed:
        print(
            f"\n{len(failed)} of {max(num_jobs, num_started)} runs of the sweep failed:",
            *failed,
            sep="\n  ",
            file=sys.stderr,
        )
    if exit_code and num_started < num_jobs:
        print(f"\n{num_jobs - num_started} of {num_jobs} runs of the sweep were not started.", file=sys.stderr)
    with unread():
        print(f"Sweep        {relative(sweep_dir)}")
        if exit_code:
            print(f"To finish it: sweep.resume={relative(sweep_dir)}")
    message = f"{num_completed} of {max(num_jobs, num_started)} runs completed"
    notify(command, "sweep-failed" if exit_code else "sweep-completed", sweep_dir, message)
    return exit_code


@contextmanager
def _ending_by_signals() -> Iterator[None]:
    """A signal between two runs ends the sweep as one during a run does, with all that is said at its end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(signum: int, frame: FrameType | None) -> None:
        sys.exit(128 + signum)

    heeded = [each for each in SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
    before = {signum: signal.signal(signum, end) for signum in heeded}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _secrets_of(cfg: "DictConfig") -> Collection[str]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from laptime.secrets import secret_values

    try:
        return secret_values(OmegaConf.to_container(cfg, resolve=True))
    except OmegaConfBaseException:
        return ()


def swept_overrides(overrides: list[str], jobs: list[list[str]]) -> list[str]:
    """Those overrides of a job that not every job of the sweep has."""
    same_everywhere = set.intersection(*(set(job) for job in jobs)) if jobs else set()
    return [override for override in overrides if override not in same_everywhere]


def _swept(overrides: list[str], jobs: list[list[str]]) -> str:
    return " ".join(mask_command(swept_overrides(overrides, jobs)))


# What a sweep that is gone on with may be given anew, and tells no run from another.
_OF_NO_RUN = (
    "measure.target_interval",
    "measure.max_repeats",
    "sweep.on_failure",
    "sweep.notify",
    "security.allowed_targets",
)


def sweep_label(overrides: list[str], jobs: list[list[str]]) -> str:
    """What tells a job of a sweep from the others, short enough for a folder's name, without secrets: `ws=2 seed=1`.

    Args:
        overrides: of the job.
        jobs: overrides of every job of the sweep.
    """
    swept = [override.lstrip("+").split("=", 1) for override in mask_command(swept_overrides(overrides, jobs))]
    swept = [pair for pair in swept if pair[0] not in _OF_NO_RUN]
    short = {"strategy.world_size": "ws"}
    label = " ".join(f"{short.get(key, key.rpartition('.')[2])}={value}" for key, value in swept)
    return _folder_name(label)


def _folder_name(label: str) -> str:
    return label.replace("/", "_").replace("\\", "_")[:100]


def objective(record: Mapping[str, Any]) -> float | None:
    """The value of `optimized_metric`: what Hydra's sweepers optimise; None where it was not measured."""
    name = record["config"]["optimized_metric"]
    return None if name is None else (record["result"] | record["timing"])[name]


def _sweep_jobs(hydra: "Hydra", overrides: list[str]) -> Iterator[list[str]]:
    """The overrides of each job of a sweep; ranges without steps, which a sweeper will draw from, are left out."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from hydra_plugins.laptime.repeating_sweeper import RepeatingSweeper

    try:
        parsed = OverridesParser.create(hydra.config_loader).parse_overrides(overrides)
        discrete = [each for each in parsed if not each.is_sweep_override() or each.is_discrete_sweep()]
        _require_few_enough(discrete)
        for batch in RepeatingSweeper.split_arguments(discrete, max_batch_size=None):
            yield from batch
        ranges = [str(each.input_line) for each in parsed if each.is_sweep_override() and not each.is_discrete_sweep()]
        if ranges and not any("hydra/sweeper" in override for override in overrides):
            raise UserError(
                f"{ranges[0]}: a range without steps needs a sweeper that draws from it (hydra/sweeper=...)."
            )
    except HydraException as error:
        raise UserError(f"{str(error).splitlines()[0]}. Use key=value1,value2 to sweep over values.") from error


# Each is composed and checked before the first starts.
_MOST_JOBS = 10_000


def _require_few_enough(overrides: "Sequence[Override]") -> None:
    """Refuse what would be composed for hours, before anything of it is made."""
    counts = {each.input_line: _num_values(each) for each in overrides}
    total = math.prod(counts.values())
    if total > _MOST_JOBS:
        longest = max(counts, key=lambda line: counts[line])
        raise UserError(
            f"{longest}: makes {total:,.0f} runs in all; a sweep may have {_MOST_JOBS:,}. Sweep over fewer values."
        )


def _num_values(override: "Override") -> float:
    from hydra.core.override_parser.types import ChoiceSweep, RangeSweep

    value = override.value()
    if isinstance(value, RangeSweep) and value.start is not None and value.stop is not None and value.step:
        return max(0, math.ceil((value.stop - value.start) / value.step))
    return len(value.list) if isinstance(value, ChoiceSweep) else 1


def _hand_over_to_hydra(arguments: list[str], task: Any) -> None:
    """Let Hydra's own command line do what it does: help, --cfg, completion, sweeps."""
    import hydra

    from laptime.compose import CONFIG_NAME, config_dir
    from laptime.config import register_schema

    register_schema()
    before, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=CONFIG_NAME)(task)()
    finally:
        sys.argv = before


def _quote(path: Path) -> str:
    """A path so that Hydra takes it as it is."""
    escaped = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _command() -> list[str]:
    """What was typed, the interpreter by its name alone."""
    return [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]


def _process_started_at() -> float:
    """`time.time()` when this process started; psutil's own figure is off by up to a second on Linux."""
    import psutil

    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return time.time() - age_s
    except (OSError, ValueError, AttributeError):
        return psutil.Process().create_time()
