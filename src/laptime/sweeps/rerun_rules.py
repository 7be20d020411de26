"""Decide whether a run of an earlier sweep is kept, resumed or started again, and say why."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from laptime.config.schema import Config
from laptime.config.validate import resolve_warmup_epochs
from laptime.machine.environment import code_hash, environment, git_state, is_set_while_running
from laptime.record.files import read_epochs
from laptime.record.hashes import config_hashes
from laptime.record.schema import Environment
from laptime.sweeps.earlier import EarlierRun
from laptime.terminal import relative
from laptime.text import join_first_three


@dataclass(frozen=True)
class Job:
    """A run in the current plan.

    Attributes:
        overrides: the overrides with one value per key.
        invocation: number of the command line that it belongs to. The same configuration twice in one command line
            makes two runs; in two command lines it makes one.
    """

    overrides: list[str]
    config: Config
    invocation: int = 0


@dataclass(frozen=True)
class Step:
    """The action for one job.

    Attributes:
        number: the number of the run, which names its directory.
        decision: a description of the action.
        run: the earlier run with this number; None: there is none.
        is_done: whether it is completed, so that nothing is done.
        resume: whether to continue in the run's directory, from its last checkpoint if it has one. Otherwise its files
            are moved to earlier/.
    """

    number: int
    overrides: list[str]
    decision: str
    run: EarlierRun | None = None
    is_done: bool = False
    resume: bool = False


def keep_completed(run: EarlierRun, job: Job) -> Step:
    return Step(
        run.number,
        job.overrides,
        f"completed, skipped{condition_changes(run, job.config.as_dict())}",
        run,
        is_done=True,
    )


def condition_changes(run: EarlierRun, config: Mapping[str, Any]) -> str:
    """Describe how a completed run differs from new ones apart from its configuration; empty: not at all."""
    changes, commits = _changed_conditions(run, config)
    if changes:
        return (
            f"; measured with different {join_first_three(changes)}: not comparable with new runs. Delete "
            f"{relative(run.path)} to run it again"
        )
    return f"; same code, different commit ({commits})" if commits else ""


def retry(run: EarlierRun, job: Job, hashed: Mapping[str, Any]) -> Step:
    """Resume a run if its epochs are comparable with new ones; otherwise start it again from the beginning."""
    from laptime.training.checkpoints import last_intact  # loads torch

    decision = f"{run.end_text}, retried"
    changes, _ = _changed_conditions(run, job.config.as_dict())
    if run.config_hash is None:
        reason = ""  # it ended before its training started
    elif run.config_hash != config_hashes(hashed)[0]:
        reason = config_changes(run, hashed)
    elif changes:
        reason = f": now with different {join_first_three(changes)}"
    elif not _leaves_an_epoch_to_time(run, job.config):
        reason = ": all remaining epochs would be warm-up"
    elif last_intact(run.path) is None:
        reason = ": no complete checkpoint"
        return Step(run.number, job.overrides, f"{decision} from the beginning{reason}", run, resume=True)
    else:
        return Step(run.number, job.overrides, f"{decision} from its last checkpoint", run, resume=True)
    return Step(run.number, job.overrides, f"{decision} from the beginning{reason}", run)


def _leaves_an_epoch_to_time(run: EarlierRun, config: Config) -> bool:
    """Whether a resumed run has an epoch that counts. New processes need warm-up epochs again."""
    epochs = read_epochs(run.path)
    if epochs.empty or not epochs["is_warmup"].all():
        return True
    num_laps = config.training.num_laps
    num_left = num_laps - (int(epochs["epoch"].max()) + 1)
    return num_left > resolve_warmup_epochs(config.measure.warmup_epochs, num_laps)


def config_changes(run: EarlierRun, hashed: Mapping[str, Any]) -> str:
    """Describe how the configuration of a run with the same overrides has changed."""
    before = (None if run.record is None else run.record.hashed_config) or {}
    differences = [
        f"{key} {before.get(key)} then, {hashed.get(key)} now"
        for key in dict.fromkeys([*before, *hashed])
        if before.get(key) != hashed.get(key)
    ]
    if not before:
        return ""
    return f": run {run.number} with the same overrides had {join_first_three(differences)}"


@cache
def current_environment() -> Environment:
    from laptime.machine.device import cpu_name, usable_cores  # loads torch

    return environment(cpu_name(), usable_cores())


@cache
def _commit() -> str | None:
    return git_state(Path(__file__).parent).commit


def _changed_conditions(run: EarlierRun, config: Mapping[str, Any]) -> tuple[list[str], str]:
    """Return what has changed since a run apart from its configuration.

    Returns:
        The names of the changed conditions with both values, and the two commits (empty: the same).
    """
    if run.record is None or run.record.environment is None:
        return [], ""
    then, now = run.record.environment, current_environment()
    commit_then = run.record.git.commit
    commit_now = _commit()
    commits = ""
    if commit_then and commit_now and commit_then != commit_now:
        commits = f"{commit_then[:7]} then, {commit_now[:7]} now"
    changes = []
    if then.code_hash != code_hash(config):
        changes.append(f"code ({f'commit {commits}' if commits else 'uncommitted changes'})")
    versions = [("torch", then.packages.get("torch"), now.packages["torch"])]
    versions += [("python", then.python, now.python), ("cpu", then.cpu, now.cpu)]
    versions += [("number of cores", str(then.num_usable_cores), str(now.num_usable_cores))]
    if then.settings is not None:
        settings_now = now.settings or {}
        # Older versions of Laptime recorded the variables that torchrun sets, too.
        names = sorted(name for name in {*then.settings, *settings_now} if not is_set_while_running(name))
        versions += [(name, then.settings.get(name), settings_now.get(name)) for name in names]
    changes += [f"{name} ({before} then, {after} now)" for name, before, after in versions if before != after]
    return changes, commits
