"""What becomes of a run of an earlier sweep: it stands, goes on, or starts again, and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from laptime.config.schema import Config
from laptime.config.validate import resolve_warmup_epochs
from laptime.machine.device import cpu_name, usable_cores
from laptime.machine.environment import code_hash, environment, git_state, is_set_while_running
from laptime.record.files import read_epochs
from laptime.record.hashes import config_hashes
from laptime.record.schema import Environment
from laptime.sweeps.earlier import EarlierRun
from laptime.terminal import relative
from laptime.text import join_first_three
from laptime.training.checkpoints import last_intact


@dataclass(frozen=True)
class Job:
    """A run as it would be now.

    Attributes:
        invocation: of what was typed at different times it follows from; what follows twice from one was meant twice.
        overrides: of this job alone, nothing left to sweep over.
    """

    overrides: list[str]
    config: Config
    invocation: int = 0


@dataclass(frozen=True)
class Step:
    """What becomes of one job.

    Attributes:
        number: of the run, and its directory's name.
        decision: in words.
        run: that has the directory already; None: none has.
        is_done: it is completed; nothing is to be done.
        resume: from what it has: its last checkpoint, if it has one. Otherwise what it has is set aside.
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
    """What a completed run does not share with new ones beside its configuration, in words; empty: nothing."""
    others, commits = _changed_conditions(run, config)
    if others:
        return (
            f"; measured with other {join_first_three(others)}: its figures don't compare with new ones, delete "
            f"{relative(run.path)} to run it again"
        )
    return f"; of the same code at another {commits}" if commits else ""


def retry(run: EarlierRun, job: Job, hashed: Mapping[str, Any]) -> Step:
    """Go on with a run where its epochs can stand beside new ones, otherwise start it again from the beginning."""
    decision = f"{run.end_text}, retried"
    others, _ = _changed_conditions(run, job.config.as_dict())
    if run.config_hash is None:
        reason = ""  # it had not come to anything
    elif run.config_hash != config_hashes(hashed)[0]:
        reason = config_changes(run, hashed)
    elif others:
        reason = f", now with other {join_first_three(others)}"
    elif not _leaves_an_epoch_to_time(run, job.config):
        reason = ": the epochs left would all be warm-up"
    elif last_intact(run.path) is None:
        reason = ": no whole checkpoint"
        return Step(run.number, job.overrides, f"{decision} from the beginning{reason}", run, resume=True)
    else:
        return Step(run.number, job.overrides, f"{decision} from its last checkpoint", run, resume=True)
    return Step(run.number, job.overrides, f"{decision} from the beginning{reason}", run)


def _leaves_an_epoch_to_time(run: EarlierRun, config: Config) -> bool:
    """Whether a run that goes on has an epoch that counts: new processes are cold, and warm up once more."""
    epochs = read_epochs(run.path)
    if epochs.empty or not epochs["is_warmup"].all():
        return True
    left = config.training.epochs - (int(epochs["epoch"].max()) + 1)
    return left > resolve_warmup_epochs(config.measure.warmup_epochs, config.training.epochs)


def config_changes(run: EarlierRun, hashed: Mapping[str, Any]) -> str:
    """How the configuration that the same overrides stand for has changed."""
    before = (None if run.record is None else run.record.hashed_config) or {}
    differences = [
        f"{key} {before.get(key)} then, {hashed.get(key)} now"
        for key in dict.fromkeys([*before, *hashed])
        if before.get(key) != hashed.get(key)
    ]
    return f": run {run.number} of the same overrides had {join_first_three(differences)}" if before else ""


@cache
def current_environment() -> Environment:
    return environment(cpu_name(), usable_cores())


@cache
def _commit() -> str | None:
    return git_state(Path(__file__).parent).commit


def _changed_conditions(run: EarlierRun, config: Mapping[str, Any]) -> tuple[list[str], str]:
    """What else than the configuration is not as it was for a run; and its commit, where that is another one."""
    if run.record is None or run.record.environment is None:
        return [], ""
    then, now = run.record.environment, current_environment()
    commit_then = run.record.git.commit
    commit_now = _commit()
    commits = ""
    if commit_then and commit_now and commit_then != commit_now:
        commits = f"commit ({commit_then[:7]} then, {commit_now[:7]} now)"
    others = []
    if then.code_hash != code_hash(config):
        others.append(f"code ({commits or 'uncommitted changes'})")
    versions = [("torch", then.packages.get("torch"), now.packages["torch"])]
    versions += [("python", then.python, now.python), ("cpu", then.cpu, now.cpu)]
    versions += [("number of cores", str(then.num_usable_cores), str(now.num_usable_cores))]
    if then.settings is not None:
        settings_now = now.settings or {}
        # An older Laptime recorded what torchrun sets, too.
        names = sorted(name for name in {*then.settings, *settings_now} if not is_set_while_running(name))
        versions += [(name, then.settings.get(name), settings_now.get(name)) for name in names]
    others += [f"{name} ({before} then, {after} now)" for name, before, after in versions if before != after]
    return others, commits
