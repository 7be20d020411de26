"""The entry point: what `python train.py`, `python -m laptime` and `laptime.run` do with what was typed.

Nothing is written before what was typed is known to be right, and torch is loaded only where something is trained.
"""

import argparse
import logging
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laptime.errors import Interrupted, RankFailed, TrainingFailed, UserError, in_words

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

    from laptime.core_shares import CoreShares
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

    from laptime import security  # noqa: F401  reads what is trusted, before a configuration can change it
    from laptime.compose import compose, find_own_classes, hand_over_to_hydra, hydra_session, resolve, without_hydra
    from laptime.config import validate
    from laptime.sweep import command_line

    if "--version" in arguments:  # of the parser it would be Hydra's
        from laptime.version import __version__

        print(f"laptime {__version__}")
        return 0
    args = get_args_parser().parse_intermixed_args(arguments)
    # Hydra's own parser wants what is not a flag in one piece.
    flags = [each for each in arguments if each not in args.overrides]
    arguments = [*flags, *args.overrides]
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise UserError("the current folder is gone. Change to one that exists.") from error
    find_own_classes(args.config_dir)
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
        hand_over_to_hydra(arguments, lambda cfg: None)
        return 0
    if args.multirun or _is_sweep(args):
        flags = flags if args.multirun else ["-m", *flags]
        resumed, typed = _resumed_sweep(args.overrides)
        if resumed is None:
            return _sweep(args, [*flags, *args.overrides])
        return _resume_sweep(args, flags, resumed, typed)
    _run_once(args.overrides, _process_started_at(), command_line(), args)
    return 0


def _is_sweep(args: argparse.Namespace) -> bool:
    """Whether what was typed stands for a sweep without -m: some experiments do."""
    from laptime.compose import compose, hydra_session, hydra_value

    if any(override.startswith("sweep.resume=") and override != "sweep.resume=null" for override in args.overrides):
        return True
    experiments = [override for override in args.overrides if override.startswith(("experiment=", "search="))]
    if not experiments:
        return False
    places = [override for override in args.overrides if override.startswith("hydra.searchpath=")]
    with hydra_session(args.config_dir) as hydra:  # of what else was typed some may be values to sweep over
        return (
            hydra_value(compose(hydra, [*places, *experiments], args.config_name), "hydra.mode") == "RunMode.MULTIRUN"
        )


def _run_once(
    overrides: list[str], started: float, command: list[str], args: argparse.Namespace | None = None
) -> dict[str, Any]:
    from laptime import fresh_processes, slurm, torchrun
    from laptime.compose import CONFIG_NAME, compose, hydra_session, hydra_value, quoted, without_hydra
    from laptime.record import RUN_FILE
    from laptime.run_dir import RunDir
    from laptime.run_job import run_job

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
        config = check(composed, overrides)
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
            return run_job(without_hydra(composed), Path(path), command, started, overrides)

        def task(cfg: "DictConfig") -> dict[str, Any] | Exception:
            try:
                return run_job(cfg, Path(path), command, started, overrides)
            except Exception as error:  # Hydra would print a line of its own: carried around it, raised below.
                return error

        try:
            result = hydra.run(config_name, task, [*overrides, f"hydra.run.dir={quoted(Path(path))}"]).return_value
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


def check(composed: "DictConfig", typed: Sequence[str]) -> dict[str, Any]:
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
    if cfg.get("runs_at_once") != 1:
        raise UserError(f"runs_at_once={cfg.runs_at_once}: is filled in by the launcher of a sweep. Leave it out.")
    cfg.run_dir = "."  # the real one is reserved when all is known to be right
    config = resolve(cfg)
    validate(config)
    security.check(config, typed)
    from laptime.training import check_open_groups  # loads torch: after all that can be said without

    check_open_groups(config)
    return config


def _sweep(args: argparse.Namespace, arguments: list[str]) -> int:
    """Check every job of a sweep, then run them."""
    from laptime import fresh_processes, slurm, torchrun
    from laptime.compose import hydra_session, hydra_value
    from laptime.core_shares import shares_of
    from laptime.launch import num_ranks
    from laptime.resume_sweep import Step
    from laptime.run_dir import RunDir, use
    from laptime.sweep import Sweep, num_trials

    if torchrun.is_joined():
        raise UserError("-m: torchrun's ranks belong to one run. Start one torchrun per run, or the sweep without it.")
    slurm.require_one_task()
    with hydra_session(args.config_dir) as hydra:
        jobs, composed = _compose_sweep(hydra, args.overrides, args.config_name)
        num_jobs = len(jobs) if (trials := num_trials(composed[0])) is None else trials
        twice = [job for job, count in Counter(map(tuple, jobs)).items() if count > 1]
        if twice and trials is None:
            raise UserError(f"{' '.join(twice[0])}: the same run twice. Repeats of a run differ by their seed.")
        fresh_processes.load_ahead()
        configs = [check(each, args.overrides) for each in composed]
        if trials is not None:
            _require_search(composed[0], trials)
        sweep_world_size = max(num_ranks(config) for config in configs)
        shares = shares_of(composed[0], num_jobs, sweep_world_size)
        if any(config["sweep"]["dry_run"] for config in configs):
            if trials is not None:
                raise UserError("sweep.dry_run=true: not with a search, whose sweeper chooses the trials as it goes.")
            steps = [Step(number, job, "new") for number, job in enumerate(jobs)]
            return _show_what_would_be_done(steps, configs, jobs, sweep_world_size, shares)
        chosen = any(override.lstrip("+").startswith("hydra.sweep.dir=") for override in args.overrides)
        sweep_dir = RunDir(hydra_value(composed[0], "hydra.sweep.dir"), may_move=not chosen, key="hydra.sweep.dir")
        use(sweep_dir.path)
    command = configs[0]["sweep"]["notify"]
    sweep = Sweep(
        sweep_dir.path, args.overrides, jobs, num_jobs, sweep_world_size, command, shares, chooses=trials is not None
    )
    try:
        return sweep.run(arguments)
    except UserError:
        sweep_dir.remove()
        raise


def _resumed_sweep(overrides: list[str]) -> "tuple[EarlierSweep | None, list[str]]":
    """The sweep that is to be gone on with, None: a new one is to be started, and what is typed besides."""
    if not any(override.lstrip("+").startswith("sweep.resume=") for override in overrides):
        return None, overrides
    from laptime.resume_sweep import EarlierSweep, asked_for

    asked, typed = asked_for(overrides)
    asks = ("true", "yes", "on", "1")
    only_looks = any(each.lower() in {f"sweep.dry_run={word}" for word in asks} for each in typed)
    return None if asked is None else EarlierSweep(asked, only_looks), typed


def _resume_sweep(args: argparse.Namespace, flags: list[str], sweep: "EarlierSweep", typed: list[str]) -> int:
    """Say what becomes of each job of an earlier sweep, then run those that are not completed.

    Args:
        flags: what was typed, without overrides.
        typed: overrides besides `sweep.resume`.
    """
    from laptime import fresh_processes, resume_sweep, security, slurm, torchrun
    from laptime.analysis.sweep_callback import report_sweep
    from laptime.compose import compose, hydra_session, key_of, resolve, without_hydra
    from laptime.core_shares import shares_of
    from laptime.launch import num_ranks
    from laptime.sweep import Sweep, swept

    if torchrun.is_joined():
        raise UserError("sweep.resume: is for a sweep of runs that Laptime starts. Leave torchrun out.")
    slurm.require_one_task()
    # What is said anew each time makes no other jobs.
    of_now = [override for override in typed if resume_sweep.is_of_now(override)]
    added = [override for override in typed if override not in of_now]
    asked = [resume_sweep.merged(each, of_now) for each in sweep.invocations(added)]
    with hydra_session(args.config_dir) as hydra:
        pairs: list[tuple[list[str], DictConfig, int]] = []
        for invocation, each in enumerate(asked):
            try:
                composed_jobs = zip(*_compose_sweep(hydra, each, args.config_name), strict=True)
                pairs += ((job, composed, invocation) for job, composed in composed_jobs)
            except UserError as error:
                raise UserError(f"{error}\nThe jobs of {sweep.path.name} follow from: {' '.join(each)}") from error
        if not added:
            unfinished = [resume_sweep.merged(each, of_now) for each in sweep.unfinished()]
            further = enumerate(unfinished, start=len(asked))
            pairs += [(each, compose(hydra, each, args.config_name), number) for number, each in further]
        fresh_processes.load_ahead()
        jobs = []
        for overrides, composed, invocation in pairs:
            check(composed, typed)
            cfg = without_hydra(composed)
            cfg.run_dir = str(sweep.path / "run")  # any that nothing else in the configuration can be
            jobs.append(resume_sweep.Job(overrides, resolve(cfg), invocation))
        shares = shares_of(pairs[0][1], len(jobs), max(num_ranks(job.config) for job in jobs))
    sweep_world_size = sweep.sweep_world_size([job.config for job in jobs], shares)
    steps = sweep.plan(jobs, sweep_world_size, shares)
    known = resume_sweep.jobs_ever(sweep.runs, jobs)
    if any(job.config["sweep"]["dry_run"] for job in jobs):
        by_overrides = {tuple(job.overrides): job.config for job in jobs}
        configs: list[Mapping[str, Any] | None] = [by_overrides[tuple(step.overrides)] for step in steps]
        left = sweep.not_asked_for(steps)
        configs += [None] * len(left)
        return _show_what_would_be_done([*steps, *left], configs, known, sweep_world_size, shares)
    for step in sorted([*steps, *sweep.not_asked_for(steps)], key=lambda step: step.number):
        print(f"run {step.number} ({' '.join(swept(step.overrides, known))}): {step.decision}", file=sys.stderr)
    if sweep.had_notify and not any(key_of(override) == security.NOTIFY_KEY for override in typed):
        print(f"{security.NOTIFY_KEY} is not taken over: nobody is told, unless it is typed again", file=sys.stderr)
    todo = {step.number: step for step in steps if not step.is_done}
    repeats = any(job.config["measure"]["target_interval"] is not None for job in jobs)
    if not todo:
        print(f"\nall {len(steps)} runs are completed", file=sys.stderr)
        if not repeats:
            report_sweep(sweep.path)
            return 0
    sweep.keep_what_was_typed(asked[-1])
    command = jobs[0].config["sweep"]["notify"]
    going_on = Sweep(sweep.path, typed, known, len(todo), sweep_world_size, command, shares, todo)
    return going_on.run([*flags, *asked[-1]])


def _show_what_would_be_done(
    steps: "Sequence[Step]",
    configs: Sequence[Mapping[str, Any] | None],
    jobs: list[list[str]],
    sweep_world_size: int,
    shares: "CoreShares | None",
) -> int:
    """Print each run of a sweep, what becomes of it and what it will take.

    Args:
        configs: in the order of `steps`; None: of one that nothing is to become of.
    """
    from laptime import dry_run
    from laptime.console import unread, wide_console
    from laptime.estimate import estimate, known_runs
    from laptime.launch import will_be_hashed
    from laptime.record import RESULT_FOLDERS
    from laptime.sweep import swept

    known, at_once = known_runs(RESULT_FOLDERS), 1 if shares is None else shares.num
    planned = []
    for step, config in zip(steps, configs, strict=True):
        guess = None
        if config is not None:
            guess = estimate(will_be_hashed({**config, "run_dir": None}, sweep_world_size, at_once), known)
        differs = " ".join(swept(step.overrides, jobs))
        planned.append(dry_run.Planned(step.number, differs, step.decision, step.is_done, guess))
    with unread():
        dry_run.show(sorted(planned, key=lambda each: each.number), wide_console())
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


def _sweep_jobs(hydra: "Hydra", overrides: list[str]) -> Iterator[list[str]]:
    """The overrides of each job of a sweep; of one whose sweeper chooses as it goes, some that stand for the others."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from hydra_plugins.laptime.repeating_sweeper import RepeatingSweeper
    from laptime.compose import key_of, with_its_sweeper

    overrides = with_its_sweeper(overrides)
    try:
        parsed = OverridesParser.create(hydra.config_loader).parse_overrides(overrides)
        for each in parsed:
            if each.is_sweep_override() and each.is_hydra_override():
                within = str(each.input_line).removeprefix("hydra.sweeper.params.")
                instead = "Give it one value" if within == each.input_line else f"To search it, type {within}"
                raise UserError(f"{each.input_line}: Hydra's own settings hold for the whole sweep. {instead}.")
        if any(key_of(override) == "hydra/sweeper" and override != "hydra/sweeper=laptime" for override in overrides):
            _require_one_seed(parsed)
            yield from _that_may_be_chosen(parsed)
            return
        ranges = [str(each.input_line) for each in parsed if each.is_sweep_override() and not each.is_discrete_sweep()]
        if ranges:
            raise UserError(
                f"{ranges[0]}: a range without steps needs a sweeper that draws from it: hydra/sweeper=optuna."
            )
        _require_few_enough(parsed)
        for batch in RepeatingSweeper.split_arguments(parsed, max_batch_size=None):
            yield from batch
    except HydraException as error:
        raise UserError(_not_understood(overrides) or f"{str(error).splitlines()[0]}.") from error


def _that_may_be_chosen(parsed: "Sequence[Override]") -> Iterator[list[str]]:
    """Jobs that a sweeper could choose: both ends of each range, and each of several values, beside the first of the
    others. What is wrong with one of them is found before the search starts."""
    from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, RangeSweep

    def values(override: "Override") -> list[str]:
        value = override.value()
        if isinstance(value, IntervalSweep | RangeSweep):
            ends = [value.start, value.end] if isinstance(value, IntervalSweep) else [value.start]
            return [f"{override.get_key_element()}={end}" for end in ends]
        if isinstance(value, ChoiceSweep):
            key = override.get_key_element()
            return [f"{key}={override._get_value_element_as_str(each)}" for each in value.list]
        return [str(override.input_line)]

    # The last of one key counts.
    of_each = [values(each) for each in {each.get_key_element(): each for each in parsed}.values()]
    first = [each[0] for each in of_each]
    yield first
    for place, others in enumerate(of_each):
        for other in others[1:]:
            yield [*first[:place], other, *first[place + 1 :]]


def _require_one_seed(parsed: "Sequence[Override]") -> None:
    """Refuse to search for the luckiest seed, which is what a sweeper that chooses would make of several."""
    for each in parsed:
        if each.is_sweep_override() and each.get_key_element() == "seed":
            raise UserError(
                f"{each.input_line}: a search does not repeat its trials, it would choose the luckiest seed. Give it "
                "one; repeat the best trials afterwards, in a sweep of their own."
            )


def _require_search(composed: "DictConfig", num_trials: int) -> None:
    """Refuse a search that would find nothing, or the worst.

    Raises:
        UserError: says what is missing, or which directions the metrics have.
    """
    from omegaconf import OmegaConf

    from laptime.record import is_maximised

    if num_trials < 1:
        raise UserError(f"hydra.sweeper.n_trials={num_trials}: must be at least 1.")
    num_at_once = OmegaConf.select(composed, "hydra.sweeper.n_jobs")
    if num_at_once is not None and num_at_once < 1:
        raise UserError(f"hydra.sweeper.n_jobs={num_at_once}: must be at least 1.")
    rate = OmegaConf.select(composed, "hydra.sweeper.max_failure_rate")
    if rate is not None and not 0 <= rate <= 1:
        raise UserError(f"hydra.sweeper.max_failure_rate={rate}: must be a share from 0 to 1.")
    if composed.measure.target_interval is not None:
        raise UserError(f"measure.target_interval={composed.measure.target_interval}: not with a sweeper that chooses.")
    metrics, asked = composed.optimized_metric, OmegaConf.select(composed, "hydra.sweeper.direction")
    names = [str(each) for each in metrics] if OmegaConf.is_list(metrics) else [str(metrics)]
    if metrics is None:
        raise UserError("optimized_metric=null: a search needs an objective, like optimized_metric=val_accuracy.")
    asked = list(asked) if OmegaConf.is_list(asked) else [asked]
    given = [str(getattr(each, "name", each)) for each in asked]
    wanted = ["maximize" if is_maximised(name) else "minimize" for name in names]
    if given != wanted:
        shown = [f"[{','.join(each)}]" if OmegaConf.is_list(metrics) else each[0] for each in (given, wanted, names)]
        raise UserError(
            f"hydra.sweeper.direction={shown[0]}: with optimized_metric={shown[2]} it must be "
            f"'hydra.sweeper.direction={shown[1]}'."
        )


def _not_understood(overrides: list[str]) -> str | None:
    """Which override can't be parsed, and what to do about it; None: each can."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    for override in overrides:
        try:
            OverridesParser.create().parse_overrides([override])
        except HydraException:
            key, _, value = override.partition("=")
            return (
                f"{override}: not understood. Write key=value1,value2 to sweep over values; a value with special "
                f"characters takes quotes of its own: '{key}=\"...\"'"
                + (', with \\" for each " in it.' if '"' in value else ".")
            )
    return None


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


def _process_started_at() -> float:
    """`time.time()` when this process started; psutil's own figure is off by up to a second on Linux."""
    import psutil

    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
        return time.time() - age_s
    except (OSError, ValueError, AttributeError):
        return psutil.Process().create_time()
