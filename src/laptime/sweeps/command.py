"""The commands `-m` and `sweep.resume`: check every job of a sweep, then run them, or print a dry run."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from laptime import starting
from laptime.errors import UserError, ignore_broken_pipe

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra

    from laptime.config.job_composer import ComposedJob
    from laptime.config.schema import Config
    from laptime.sweeps.core_slots import SweepCores
    from laptime.sweeps.rerun_rules import Job, Step
    from laptime.sweeps.resume import EarlierSweep
    from laptime.sweeps.sweep import Sweep

# Snapshots of the jobs' configurations, by overrides.
Snapshots = dict[tuple[str, ...], bytes]


def run_sweep(args: argparse.Namespace) -> int:
    """Check every job of a sweep, then run them."""
    from laptime.config.compose import add_search_sweeper, hydra_session, hydra_value
    from laptime.config.foreign_answers import explained_in_sweep
    from laptime.config.identity import snapshot
    from laptime.config.overrides import find
    from laptime.ranks import torchrun
    from laptime.record.directory import RunDir, claim
    from laptime.runner import fresh_processes, without_effect
    from laptime.runner.check import check_classes, check_settings_of_jobs
    from laptime.sweeps.hydra_jobs import sweep_config
    from laptime.sweeps.notice import with_notice
    from laptime.sweeps.plan import num_trials, plan_runs, refuse_repeated_runs, require_search

    if torchrun.is_joined():
        raise UserError(
            "-m: not supported under torchrun, which starts a single run. Start the sweep without torchrun."
        )
    with hydra_session(args.config_dir) as hydra:
        with explained_in_sweep(hydra, args.overrides):
            runs = plan_runs(hydra, args.overrides, args.config_name)
            configs = check_settings_of_jobs(with_notice(runs, "checking"), args.overrides)
        first, jobs = runs[0].composed(), [run.overrides for run in runs]
        num_jobs = len(jobs) if (trials := num_trials(first)) is None else trials
        if trials is not None:
            require_search(first, trials, configs[0].score)
        else:
            refuse_repeated_runs(runs, configs)
        for config in configs:
            refuse_resume_in_a_file(config)
            _refuse_latest(config)
        without_effect.check(
            hydra, args.overrides, [run.composed for run in runs], configs, is_sweep=True, config_name=args.config_name
        )

        # These load torch. Wrong settings are refused without it.
        from laptime.runner.rank_plan import num_ranks
        from laptime.sweeps.core_slots import SweepCores, core_slots_of
        from laptime.sweeps.rerun_rules import Step
        from laptime.sweeps.sweep import Sweep

        if find(args.overrides, "sweep.dry_run") is None:
            fresh_processes.preload()
        with explained_in_sweep(hydra, args.overrides):
            check_classes(configs, args.overrides)
        starting.hand_over()
        largest = max(num_ranks(config) for config in configs)
        cores = SweepCores(largest, core_slots_of(first, num_jobs, largest))
        if any(config.sweep.dry_run for config in configs):
            if trials is not None:
                raise UserError("sweep.dry_run=true: not supported with a search, which chooses trials while it runs.")
            steps = [Step(number, job, "new") for number, job in enumerate(jobs)]
            return _show_dry_run(steps, configs, jobs, cores)
        has_chosen_dir = find(args.overrides, "hydra.sweep.dir") is not None
        sweep_dir = RunDir(hydra_value(first, "hydra.sweep.dir"), may_move=not has_chosen_dir, key="hydra.sweep.dir")
        claim(sweep_dir.path)
        numbered = dict(enumerate(jobs)) if trials is None else {}
        sweep = Sweep(
            sweep_dir.path, args.overrides, jobs, num_jobs, cores, configs[0].sweep.notify,
            overrides_by_run=dict(numbered), todo=numbered, is_search=trials is not None,
            snapshots={number: snapshot(configs[number]) for number in numbered},
        )  # fmt: skip
        settings = sweep_config(hydra, add_search_sweeper(args.overrides), first, sweep_dir.path)
        del runs, first, configs  # they take much memory in a sweep of thousands of runs
        try:
            return sweep.run(hydra, settings)
        except UserError:
            sweep_dir.remove()
            raise


def refuse_resume_in_a_file(config: "Config") -> None:
    """Refuse `sweep.resume` in a file. The caller has removed it from the command line's overrides already."""
    if config.sweep.resume is not None:
        raise UserError(f"sweep.resume={config.sweep.resume}: can only be set on the command line, not in a file.")


def _refuse_latest(config: "Config") -> None:
    """Refuse `training.checkpoint=latest`, which would resolve to the previous run of the same sweep."""
    if config.training.checkpoint == "latest":
        raise UserError(
            "training.checkpoint=latest: would be a different run for each run of the sweep. Give a directory: "
            "training.checkpoint=outputs/..."
        )


def resumed_sweep(overrides: list[str]) -> "tuple[EarlierSweep | None, list[str]]":
    """Return the sweep to resume (None: start a new one), and the other overrides."""
    from laptime.config.overrides import find, find_last

    if find(overrides, "sweep.resume") is None:
        return None, overrides
    from laptime.sweeps.overrides import split_resume_override
    from laptime.sweeps.resume import open_sweep

    path, cli_overrides = split_resume_override(overrides)
    dry_run = find_last(cli_overrides, "sweep.dry_run")
    read_only = dry_run is not None and str(dry_run.value).lower() in ("true", "yes", "on", "1")
    if path is None:
        return None, cli_overrides
    starting.hand_over()
    return open_sweep(path, read_only), cli_overrides


def resume_sweep(args: argparse.Namespace, sweep: "EarlierSweep", cli_overrides: list[str]) -> int:
    """Print what will be done with each job of an earlier sweep, then run those that are not completed.

    Args:
        cli_overrides: the overrides of the command line without `sweep.resume`.
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
        raise UserError("sweep.resume: not supported under torchrun. Resume the sweep without torchrun.")
    sweep.require_same_configuration(args.config_name, args.config_dir)
    # Overrides for this command only don't change the jobs.
    temporary = [override for override in cli_overrides if is_per_invocation(override)]
    added = [override for override in cli_overrides if override not in temporary]
    invocations = [merge_overrides(overrides, temporary) for overrides in sweep.invocations(added)]
    unfinished = [] if added else [merge_overrides(overrides, temporary) for overrides in sweep.unfinished()]
    with hydra_session(args.config_dir) as hydra:
        planned = _plan_again(hydra, sweep, invocations, unfinished, args.config_name)
        fresh_processes.preload()
        jobs, snapshots = _check_again(planned, cli_overrides)
        configs = [job.config for job in jobs]
        composed = [run.composed for run, _ in planned]
        without_effect.check(hydra, cli_overrides, composed, configs, is_sweep=True, config_name=args.config_name)
        first = composed[0]()
        slots = core_slots_of(first, len(jobs), max(num_ranks(config) for config in configs))
        cores = sweep.cores(configs, slots)
        steps = sweep.plan(jobs, cores)
        all_jobs = all_overrides(sweep.runs, jobs)
        if any(config.sweep.dry_run for config in configs):
            return _show_resume_dry_run(sweep, jobs, steps, all_jobs, cores)
        _print_decisions(sweep, steps, all_jobs, cli_overrides)
        if all(step.is_done for step in steps) and _report_completed(sweep, steps, configs):
            return 0
        sweep.archive_invocation(invocations[-1])
        continued = _remaining_sweep(sweep, cli_overrides, jobs, steps, all_jobs, snapshots, cores)
        return continued.run(hydra, sweep_config(hydra, invocations[-1], first, sweep.path))


def _plan_again(
    hydra: "Hydra",
    sweep: "EarlierSweep",
    invocations: Sequence[list[str]],
    unfinished: Sequence[list[str]],
    config_name: str | None,
) -> "list[tuple[ComposedJob, int]]":
    """Plan the runs of an earlier sweep again.

    Args:
        invocations: the overrides of each invocation, with several values per key.
        unfinished: the overrides of each further run, with one value per key.

    Returns:
        The planned runs, each with the number of its invocation.
    """
    from laptime.config.job_composer import JobComposer
    from laptime.sweeps.plan import plan_runs

    planned: list[tuple[ComposedJob, int]] = []
    for number, overrides in enumerate(invocations):
        try:
            planned += ((run, number) for run in plan_runs(hydra, overrides, config_name))
        except UserError as error:
            raise UserError(f"{error}\nThe sweep {sweep.path.name} was started with: {' '.join(overrides)}") from error
    composer = JobComposer(hydra, config_name)
    planned += (
        (composer.compose(overrides), number) for number, overrides in enumerate(unfinished, start=len(invocations))
    )
    return planned


def _check_again(
    planned: "Sequence[tuple[ComposedJob, int]]", cli_overrides: Sequence[str]
) -> "tuple[list[Job], Snapshots]":
    """Check the configurations of planned runs. Return the jobs, and a `snapshot` of each configuration."""
    from laptime.config.identity import snapshot
    from laptime.runner.check import check_classes, check_settings_of_jobs
    from laptime.sweeps.notice import with_notice
    from laptime.sweeps.rerun_rules import Job

    jobs, snapshots = [], {}
    configs = check_settings_of_jobs(with_notice([run for run, _ in planned], "checking"), cli_overrides)
    check_classes(configs, cli_overrides)
    for (run, invocation), config in zip(planned, configs, strict=True):
        _refuse_latest(config)
        snapshots[tuple(run.overrides)] = snapshot(config)
        jobs.append(Job(run.overrides, config, invocation))
    return jobs, snapshots


def _show_resume_dry_run(
    sweep: "EarlierSweep",
    jobs: "Sequence[Job]",
    steps: "Sequence[Step]",
    all_jobs: list[list[str]],
    cores: "SweepCores",
) -> int:
    by_overrides = {tuple(job.overrides): job.config for job in jobs}
    configs: list[Config | None] = [by_overrides[tuple(step.overrides)] for step in steps]
    others = sweep.steps_outside_request(steps)
    configs += [None] * len(others)
    return _show_dry_run([*steps, *others], configs, all_jobs, cores)


def _print_decisions(
    sweep: "EarlierSweep", steps: "Sequence[Step]", all_jobs: list[list[str]], cli_overrides: Sequence[str]
) -> None:
    from laptime.config import security
    from laptime.config.overrides import find
    from laptime.sweeps.labels import shared_overrides, swept

    shared = shared_overrides(all_jobs)
    for step in sorted([*steps, *sweep.steps_outside_request(steps)], key=lambda step: step.number):
        print(f"run {step.number} ({' '.join(swept(step.overrides, shared))}): {step.decision}", file=sys.stderr)
    if sweep.history.had_notify and find(cli_overrides, security.NOTIFY_KEY) is None:
        print(
            f"{security.NOTIFY_KEY} is not kept when a sweep is resumed. Set it again to be notified",
            file=sys.stderr,
        )


def _report_completed(sweep: "EarlierSweep", steps: "Sequence[Step]", configs: "Sequence[Config]") -> bool:
    """Report on a sweep whose jobs are all completed, and return True.

    If it may need more repeats (`measure.target_interval`), return False without a report.
    """
    from laptime.analysis.sweep_callback import report_sweep

    print(f"\nall {len(steps)} runs are completed", file=sys.stderr)
    if any(config.measure.target_interval is not None for config in configs):
        return False
    report_sweep(sweep.path)
    return True


def _remaining_sweep(
    sweep: "EarlierSweep",
    cli_overrides: Sequence[str],
    jobs: "Sequence[Job]",
    steps: "Sequence[Step]",
    all_jobs: list[list[str]],
    snapshots: Snapshots,
    cores: "SweepCores",
) -> "Sweep":
    """Return a sweep of the runs that are not completed."""
    from laptime.sweeps.sweep import Sweep

    overrides_by_run = {run.number: run.overrides for run in sweep.runs}
    overrides_by_run |= {step.number: step.overrides for step in steps}
    todo = {step.number: step for step in steps if not step.is_done}
    return Sweep(
        sweep.path, cli_overrides, all_jobs, len(todo), cores, jobs[0].config.sweep.notify,
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
    """Print each run of a sweep, what would be done with it, and the estimated time and disk space.

    Args:
        configs: the configurations in the order of `steps`; None: the step needs no estimate.
    """
    from laptime.record.latest import RESULT_FOLDERS
    from laptime.runner.rank_plan import expected_hashed_config
    from laptime.sweeps import dry_run
    from laptime.sweeps.estimate import estimate, past_runs
    from laptime.sweeps.labels import shared_overrides, swept
    from laptime.terminal import wide_console

    completed_runs, shared = past_runs(RESULT_FOLDERS), shared_overrides(jobs)
    rows = []
    for step, config in zip(steps, configs, strict=True):
        cost = None
        if config is not None:
            cost = estimate(expected_hashed_config(config, cores.context()), completed_runs)
        swept_overrides = " ".join(swept(step.overrides, shared))
        rows.append(dry_run.DryRunRow(step.number, swept_overrides, step.decision, step.is_done, cost))
    with ignore_broken_pipe():
        dry_run.show(sorted(rows, key=lambda row: row.number), wide_console())
    return 0
