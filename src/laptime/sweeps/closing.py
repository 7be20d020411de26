"""Prints the last lines of a sweep: which runs failed, the best trial of a search, how to resume."""

import sys
from collections.abc import Sequence
from pathlib import Path

from laptime.errors import ignore_broken_pipe
from laptime.record.hydra_files import HydraFileError, read_best_trial, read_sweep_file
from laptime.sweeps.notify import notify
from laptime.sweeps.outcomes import KILLED, Outcome
from laptime.sweeps.resume import resume_command
from laptime.terminal import relative


def print_summary(
    sweep_dir: Path,
    outcomes: Sequence[Outcome],
    num_jobs: int,
    exit_code: int,
    command: str | None,
    is_resumed: bool = False,
) -> None:
    """Print how a sweep ended, and run the `sweep.notify` command.

    Args:
        sweep_dir: the absolute path of the sweep directory.
        outcomes: the outcomes of the started runs.
        num_jobs: number of planned runs; in a resumed sweep, of those that were not completed.
        exit_code: the exit code of the sweep.
        command: the value of `sweep.notify`; None: no command is run.
        is_resumed: whether the sweep has completed runs that are not among `outcomes`.
    """
    runs = "remaining runs of the sweep" if is_resumed else "runs of the sweep"
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    # A process that was killed could not update its status.
    failed += [outcome for outcome in outcomes if outcome.status == "begun"]
    num_jobs = max(num_jobs, len(outcomes))
    if failed:
        lines = [f"{outcome.run}: {outcome.message or KILLED}" for outcome in failed]
        print(f"\n{len(failed)} of {num_jobs} {runs} failed:", *lines, sep="\n  ", file=sys.stderr)
    if exit_code and len(outcomes) < num_jobs:
        print(f"\n{num_jobs - len(outcomes)} of {num_jobs} {runs} were not started.", file=sys.stderr)
    with ignore_broken_pipe():
        if (best := _best_trial(sweep_dir)) is not None:
            print(f"Best         {best}")
        print(f"Sweep        {relative(sweep_dir)}")
        if exit_code and (to_resume := resume_command(sweep_dir)) is not None:
            print(f"Resume with: {to_resume}")
    num_completed = sum(outcome.status == "completed" for outcome in outcomes)
    event = "sweep-failed" if exit_code else "sweep-completed"
    notify(command, event, sweep_dir, f"{num_completed} of {num_jobs} runs completed")


def _best_trial(sweep_dir: Path) -> str | None:
    """Describe the best trial of a search with a single objective in one line; None: there is none."""
    try:
        best, metric = read_best_trial(sweep_dir), read_sweep_file(sweep_dir).optimized_metric
    except HydraFileError:
        return None
    values = " ".join(f"{key}={value}" for key, value in best.params.items())
    return f"{metric} {best.value:.4g} with {values}"
