"""What `-m`, and `sweep.resume`, do: check every job of a sweep, then run them, or show what would be run."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from laptime.errors import UserError

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra

    from laptime.config.schema import Config
    from laptime.sweeps.core_slots import SweepCores
    from laptime.sweeps.plan import PlannedRun
    from laptime.sweeps.rerun_rules import Job, Step
    from laptime.sweeps.resume import EarlierSweep
    from laptime.sweeps.sweep import Sweep

# Of each job's configuration, by its overrides.
Snapshots = dict[tuple[str, ...], bytes]


def run_sweep(args: argparse.Namespace) -> int:
    """Check every job of a sweep, then run them."""
    from laptime.config.compose import add_search_sweeper, hydra_session, hydra_value
    from laptime.config.identity import snapshot
    from laptime.config.overrides import find
    from laptime.ranks import torchrun
    from laptime.record.directory import RunDir, claim
    from laptime.runner import fresh_processes, without_effect
    from laptime.runner.check import check
    from laptime.runner.rank_plan import num_ranks
    from laptime.sweeps.core_slots import SweepCores, core_slots_of
    from laptime.sweeps.hydra_jobs import sweep_config
    from laptime.sweeps.plan import plan_runs, refuse_repeated_runs, require_search
    from laptime.sweeps.rerun_rules import Step
    from laptime.sweeps.sweep import Sweep, num_trials

    if torchrun.is_joined():
        raise UserError("-m: torchrun's ranks belong to one run. Start one torchrun per run, or the sweep without it.")
    with hydra_session(args.config_dir) as hydra:
        runs = plan_runs(hydra, args.overrides, args.config_name)
        first, jobs = runs[0].composed, [run.overrides for run in runs]
        num_jobs = len(jobs) if (trials := num_trials(first)) is None else trials
        fresh_processes.preload()
        configs = [check(run.composed, args.overrides) for run in runs]
        if trials is not None:
            require_search(first, trials)
        else:
            refuse_repeated_runs(runs, configs)
        planned = [(run.composed, config) for run, config in zip(runs, configs, strict=True)]
        without_effect.check(hydra, args.overrides, planned, True, args.config_name)
        largest = max(num_ranks(config) for config in configs)
        cores = SweepCores(largest, core_slots_of(first, num_jobs, largest))
        for config in configs:
            refuse_resume_in_a_file(config)
            _refuse_latest(config)
        if any(config.sweep.dry_run for config in configs):
            if trials is not None:
                raise UserError("sweep.dry_run=true: not with a search, whose sweeper chooses the trials as it goes.")
            steps = [Step(number, job, "new") for number, job in enumerate(jobs)]
            return _show_dry_run(steps, configs, jobs, cores)
        chosen = find(args.overrides, "hydra.sweep.dir") is not None
        sweep_dir = RunDir(hydra_value(first, "hydra.sweep.dir"), may_move=not chosen, key="hydra.sweep.dir")
        claim(sweep_dir.path)
        numbered = dict(enumerate(jobs)) if trials is None else {}
        sweep = Sweep(
            sweep_dir.path, args.overrides, jobs, num_jobs, cores, configs[0].sweep.notify,
            overrides_by_run=dict(numbered), todo=numbered, is_search=trials is not None,
            snapshots={number: snapshot(configs[number]) for number in numbered},
        )  # fmt: skip
        settings = sweep_config(hydra, add_search_sweeper(args.overrides), first, sweep_dir.path)
        del runs, first, configs, planned  # of thousands of runs they take much memory
        try:
            return sweep.run(hydra, settings)
        except UserError:
            sweep_dir.remove()
            raise


def refuse_resume_in_a_file(config: "Config") -> None:
    """What is typed has been taken out already."""
    if config.sweep.resume is not None:
        raise UserError(f"sweep.resume={config.sweep.resume}: comes from a file. Type it instead.")


def _refuse_latest(config: "Config") -> None:
    """Refuse a checkpoint that each run of a sweep would find anew: the run before it, for example."""
    if config.training.checkpoint == "latest":
        raise UserError(
            "training.checkpoint=latest: is another run for each run of a sweep. Name the run: "
            "training.checkpoint=outputs/..."
        )


def resumed_sweep(overrides: list[str]) -> "tuple[EarlierSweep | None, list[str]]":
    """The sweep to resume, and the other overrides. None instead of a sweep: a new one is to be started."""
    from laptime.config.overrides import find, find_last

    if find(overrides, "sweep.resume") is None:
        return None, overrides
    from laptime.sweeps.overrides import split_resume_override
    from laptime.sweeps.resume import open_sweep

    asked, typed = split_resume_override(overrides)
    dry_run = find_last(typed, "sweep.dry_run")
    read_only = dry_run is not None and str(dry_run.value).lower() in ("true", "yes", "on", "1")
    return None if asked is None else open_sweep(asked, read_only), typed


def resume_sweep(args: argparse.Namespace, sweep: "EarlierSweep", typed: list[str]) -> int:
    """Say what becomes of each job of an earlier sweep, then run those that are not completed.

    Args:
        typed: overrides besides `sweep.resume`.
    """
    from laptime.config.compose import hydra_session
    from laptime.ranks import torchrun
    from laptime.runner import fresh_processes, without_effect
    from laptime.runner.rank_plan import num_ranks
    from laptime.sweeps.core_slots import core_slots_of
    from laptime.sweeps.hydra_jobs import sweep_config
    from laptime.sweeps.overrides import is_per_invocation, merge_overrides
    from laptime.sweeps.resume import all_overrides

    if torchrun.is_joined():
        raise UserError("sweep.resume: is for a sweep of runs that Laptime starts. Leave torchrun out.")
    sweep.require_same_configuration(args.config_name, args.config_dir)
    # What is said anew each time makes no other jobs.
    of_now = [override for override in typed if is_per_invocation(override)]
    added = [override for override in typed if override not in of_now]
    invocations = [merge_overrides(each, of_now) for each in sweep.invocations(added)]
    unfinished = [] if added else [merge_overrides(each, of_now) for each in sweep.unfinished()]
    with hydra_session(args.config_dir) as hydra:
        planned = _plan_again(hydra, sweep, invocations, unfinished, args.config_name)
        fresh_processes.preload()
        jobs, snapshots = _check_again(planned, typed)
        configs = [job.config for job in jobs]
        composed = [run.composed for run, _ in planned]
        without_effect.check(hydra, typed, list(zip(composed, configs, strict=True)), True, args.config_name)
        slots = core_slots_of(composed[0], len(jobs), max(num_ranks(config) for config in configs))
        cores = sweep.cores(configs, slots)
        steps = sweep.plan(jobs, cores)
        known = all_overrides(sweep.runs, jobs)
        if any(config.sweep.dry_run for config in configs):
            return _show_resume_dry_run(sweep, jobs, steps, known, cores)
        _print_decisions(sweep, steps, known, typed)
        if all(step.is_done for step in steps) and _is_complete(sweep, steps, configs):
            return 0
        sweep.archive_invocation(invocations[-1])
        continued = _remaining_sweep(sweep, typed, jobs, steps, known, snapshots, cores)
        return continued.run(hydra, sweep_config(hydra, invocations[-1], composed[0], sweep.path))


def _plan_again(
    hydra: "Hydra",
    sweep: "EarlierSweep",
    invocations: Sequence[list[str]],
    unfinished: Sequence[list[str]],
    config_name: str | None,
) -> "list[tuple[PlannedRun, int]]":
    """The runs that an earlier sweep would have now, each with the number of the invocation that it follows from.

    Args:
        invocations: overrides of each, several values of a key included.
        unfinished: overrides of runs that are jobs besides.
    """
    from laptime.config.compose import compose
    from laptime.sweeps.plan import PlannedRun, plan_runs

    planned: list[tuple[PlannedRun, int]] = []
    for number, overrides in enumerate(invocations):
        try:
            planned += ((run, number) for run in plan_runs(hydra, overrides, config_name))
        except UserError as error:
            raise UserError(f"{error}\nThe jobs of {sweep.path.name} follow from: {' '.join(overrides)}") from error
    for number, overrides in enumerate(unfinished, start=len(invocations)):
        planned.append((PlannedRun(overrides, compose(hydra, overrides, config_name)), number))
    return planned


def _check_again(planned: "Sequence[tuple[PlannedRun, int]]", typed: Sequence[str]) -> "tuple[list[Job], Snapshots]":
    """The jobs with their configurations, and a `snapshot` of each configuration."""
    from laptime.config.identity import snapshot
    from laptime.runner.check import check
    from laptime.sweeps.rerun_rules import Job

    jobs, snapshots = [], {}
    for run, invocation in planned:
        config = check(run.composed, typed)
        _refuse_latest(config)
        snapshots[tuple(run.overrides)] = snapshot(config)
        jobs.append(Job(run.overrides, config, invocation))
    return jobs, snapshots


def _show_resume_dry_run(
    sweep: "EarlierSweep",
    jobs: "Sequence[Job]",
    steps: "Sequence[Step]",
    known: list[list[str]],
    cores: "SweepCores",
) -> int:
    by_overrides = {tuple(job.overrides): job.config for job in jobs}
    configs: list[Config | None] = [by_overrides[tuple(step.overrides)] for step in steps]
    left = sweep.steps_outside_request(steps)
    configs += [None] * len(left)
    return _show_dry_run([*steps, *left], configs, known, cores)


def _print_decisions(
    sweep: "EarlierSweep", steps: "Sequence[Step]", known: list[list[str]], typed: Sequence[str]
) -> None:
    from laptime.config import security
    from laptime.config.overrides import find
    from laptime.sweeps.labels import swept

    for step in sorted([*steps, *sweep.steps_outside_request(steps)], key=lambda step: step.number):
        print(f"run {step.number} ({' '.join(swept(step.overrides, known))}): {step.decision}", file=sys.stderr)
    if sweep.history.had_notify and find(typed, security.NOTIFY_KEY) is None:
        print(f"{security.NOTIFY_KEY} is not taken over: nobody is told, unless it is typed again", file=sys.stderr)


def _is_complete(sweep: "EarlierSweep", steps: "Sequence[Step]", configs: "Sequence[Config]") -> bool:
    """Whether a sweep of which each job is completed asks for no repeats either; then it is reported on."""
    from laptime.analysis.sweep_callback import report_sweep

    print(f"\nall {len(steps)} runs are completed", file=sys.stderr)
    if any(config.measure.target_interval is not None for config in configs):
        return False
    report_sweep(sweep.path)
    return True


def _remaining_sweep(
    sweep: "EarlierSweep",
    typed: Sequence[str],
    jobs: "Sequence[Job]",
    steps: "Sequence[Step]",
    known: list[list[str]],
    snapshots: Snapshots,
    cores: "SweepCores",
) -> "Sweep":
    """The sweep of those runs that are not completed."""
    from laptime.sweeps.sweep import Sweep

    overrides_by_run = {run.number: run.overrides for run in sweep.runs}
    overrides_by_run |= {step.number: step.overrides for step in steps}
    todo = {step.number: step for step in steps if not step.is_done}
    return Sweep(
        sweep.path, typed, known, len(todo), cores, jobs[0].config.sweep.notify,
        overrides_by_run=overrides_by_run,
        todo={number: step.overrides for number, step in todo.items()}, steps=todo,
        snapshots={number: snapshots[tuple(step.overrides)] for number, step in todo.items()},
    )  # fmt: skip


def _show_dry_run(
    steps: "Sequence[Step]",
    configs: Sequence["Config | None"],
    jobs: list[list[str]],
    cores: "SweepCores",
) -> int:
    """Print each run of a sweep, what will be done with it, and how much time and disk space it will take.

    Args:
        configs: in the order of `steps`; None: of one that nothing is to become of.
    """
    from laptime.record.latest import RESULT_FOLDERS
    from laptime.runner.rank_plan import expected_hashed_config
    from laptime.sweeps import dry_run
    from laptime.sweeps.estimate import estimate, past_runs
    from laptime.sweeps.labels import swept
    from laptime.terminal import ignore_broken_pipe, wide_console

    known = past_runs(RESULT_FOLDERS)
    planned = []
    for step, config in zip(steps, configs, strict=True):
        guess = None
        if config is not None:
            guess = estimate(expected_hashed_config(config, cores.context()), known)
        differs = " ".join(swept(step.overrides, jobs))
        planned.append(dry_run.Planned(step.number, differs, step.decision, step.is_done, guess))
    with ignore_broken_pipe():
        dry_run.show(sorted(planned, key=lambda each: each.number), wide_console())
    return 0
