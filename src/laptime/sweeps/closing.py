"""What a sweep says at its end: which runs failed, what was found best, how to resume it."""

import sys
from collections.abc import Sequence
from pathlib import Path

from laptime.record.hydra_files import HydraFileError, read_best_trial, read_sweep_file
from laptime.sweeps.notify import notify
from laptime.sweeps.outcomes import ENDED, Outcome
from laptime.sweeps.resume import can_be_resumed, resume_command
from laptime.terminal import ignore_broken_pipe, relative


def print_summary(
    sweep_dir: Path, outcomes: Sequence[Outcome], num_jobs: int, exit_code: int, command: str | None
) -> None:
    """Print how a sweep ended, and tell whoever asked for it.

    Args:
        sweep_dir: absolute.
        outcomes: of the runs that have begun.
        num_jobs: how many there were to be.
        exit_code: of the sweep.
        command: to tell how it went (`sweep.notify`); None: nobody is told.
    """
    failed = [each for each in outcomes if each.status == "failed"]
    # A process that was killed has said nothing any more.
    failed += [each for each in outcomes if each.status == "begun"]
    num_jobs = max(num_jobs, len(outcomes))
    if failed:
        lines = [f"{each.run}: {each.message or ENDED}" for each in failed]
        print(f"\n{len(failed)} of {num_jobs} runs of the sweep failed:", *lines, sep="\n  ", file=sys.stderr)
    if exit_code and len(outcomes) < num_jobs:
        print(f"\n{num_jobs - len(outcomes)} of {num_jobs} runs of the sweep were not started.", file=sys.stderr)
    with ignore_broken_pipe():
        for line in _best(sweep_dir):
            print(f"Best         {line}")
        print(f"Sweep        {relative(sweep_dir)}")
        if exit_code and can_be_resumed(sweep_dir):
            print(f"Resume with: {resume_command(sweep_dir)}")
    num_completed = sum(each.status == "completed" for each in outcomes)
    event = "sweep-failed" if exit_code else "sweep-completed"
    notify(command, event, sweep_dir, f"{num_completed} of {num_jobs} runs completed")


def _best(sweep_dir: Path) -> list[str]:
    """What Optuna's sweeper found best, where it has searched for one thing."""
    try:
        best, metric = read_best_trial(sweep_dir), read_sweep_file(sweep_dir).optimized_metric
    except HydraFileError:
        return []
    values = " ".join(f"{key}={value}" for key, value in best.params.items())
    return [f"{metric} {best.value:.4g} with {values}"]
