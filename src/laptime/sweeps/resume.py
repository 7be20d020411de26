"""Going on with an earlier sweep (`sweep.resume`): which of its runs stand, which are retried, and what is new.

Nothing is written here before a run starts; the command line says what was decided and does it.
"""

import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from laptime.command_line import program
from laptime.config import security
from laptime.config.compose import CONFIG_NAME
from laptime.config.overrides import find, parse
from laptime.config.schema import Config
from laptime.errors import UserError
from laptime.machine.device import usable_cores
from laptime.record.directory import claim, expanded, numbered_runs, owner_pid
from laptime.record.files import SWEEP_FILE, write_atomically
from laptime.record.hashes import config_hashes
from laptime.record.hydra_files import HYDRA_DIR, HydraFileError, SweepFile, read_sweep_file
from laptime.record.latest import newest_sweeps
from laptime.record.masking import mask_command
from laptime.record.plan import read_plan
from laptime.record.renamed import override_by_new_name
from laptime.record.schema import filled
from laptime.runner.rank_plan import expected_hashed_config, num_ranks
from laptime.sweeps.core_slots import CoreSlots, SweepCores
from laptime.sweeps.earlier import EarlierRun, read_run, running_ranks
from laptime.sweeps.overrides import FIXED, KEY, merge_overrides, persistent_overrides
from laptime.sweeps.rerun_rules import Job, Step, condition_changes, config_changes, keep_completed, retry
from laptime.terminal import relative


@dataclass(frozen=True)
class _InvocationHistory:
    """What was typed for a sweep, as Hydra's files in its directory tell; the flags are those of the last time.

    Attributes:
        invocations: the overrides of each time, the first first.
        config_name, config_dir: of the flags; None: they were not typed.
        output_subdir: Hydra's folder in the directory of a run.
        had_notify: a command was typed that told how it went (`sweep.notify`).
    """

    invocations: list[list[str]]
    config_name: str | None
    config_dir: str | None
    output_subdir: str
    had_notify: bool


@dataclass(frozen=True)
class EarlierSweep:
    """A sweep directory that nobody is writing to: see `open_sweep`.

    Attributes:
        asked: the override that names it, for messages.
        path: absolute.
        history: its earlier command lines.
        runs: its directories.
    """

    asked: str
    path: Path
    history: _InvocationHistory
    runs: list[EarlierRun]

    def invocations(self, typed: Sequence[str]) -> list[list[str]]:
        """What to make jobs of: what the sweep was started with, and after it what is typed now; where that is
        nothing, whatever has been typed for it until now.

        Raises:
            UserError: what is typed can't be changed any more.
        """
        if not typed:
            return self.history.invocations
        if (fixed := find(typed, *FIXED)) is not None:
            raise UserError(f"{fixed.text}: is what it was when the sweep started. Leave it out, or {KEY}.")
        return [merge_overrides(self.history.invocations[0], typed)]

    def require_same_configuration(self, config_name: str | None, config_dir: str | None) -> None:
        """Refuse to compose the runs from other files than those of the sweep.

        Args:
            config_name, config_dir: of the flags that are typed now. They are not taken from the sweep's own files,
                which could name any folder.
        """
        for flag, before, now in (
            ("--config-name", self.history.config_name, config_name),
            ("--config-dir", self.history.config_dir, config_dir),
        ):
            if before is not None and now is None:
                raise UserError(f"{self.asked}: this sweep was started with {flag} {before}. Type that again.")
            if before is None and now is not None:
                raise UserError(f"{self.asked}: this sweep was started without {flag}. Leave it out.")
        if self.history.config_name != config_name:
            raise UserError(
                f"{self.asked}: this sweep was started with --config-name {self.history.config_name}, "
                f"not {config_name}."
            )

    def archive_invocation(self, overrides: Sequence[str]) -> None:
        """Keep a copy of Hydra's file of what was typed last, before it is replaced by something else."""
        if list(overrides) != self.history.invocations[-1]:
            number = len(_archived_files(self.path))
            write_atomically(self.path / f"multirun-{number}.yaml", (self.path / SWEEP_FILE).read_bytes())

    def unfinished(self) -> list[list[str]]:
        """The overrides of each run that is not completed: repeats that the sweep added by itself are among them."""
        return [persistent_overrides(run.overrides) for run in self.runs if not run.is_completed and run.overrides]

    def cores(self, configs: Sequence[Config], slots: CoreSlots | None = None) -> SweepCores:
        """How the runs share the cores, so that `strategy.threads_per_rank=auto` stands for the threads that it has had
        so far.

        Args:
            configs: of the jobs now.
            slots: of the cores; None: each run has all.

        Raises:
            UserError: it can't.
        """
        cores = SweepCores(max(num_ranks(config) for config in configs), slots)
        so_far = {
            filled(run.record.strategy).threads_per_rank
            for run in self.runs
            if run.record is not None and run.record.config_hash is not None
            if run.config["strategy"]["threads_per_rank"] == "auto"
        }
        if not so_far or all(config.strategy.threads_per_rank != "auto" for config in configs):
            return cores
        threads = min(cores.threads_per_rank(), max(so_far))
        if threads not in so_far:
            before = " or ".join(map(str, sorted(so_far)))
            each = f" in each of {cores.runs_at_once} runs at once" if cores.runs_at_once > 1 else ""
            raise UserError(
                f"strategy.threads_per_rank=auto: is {threads} with up to {cores.largest_world_size} ranks{each} on "
                f"{usable_cores()} cores, and was {before} in {self.path.name}: the figures would not compare. "
                f"Choose strategy.threads_per_rank={before}, or start a new sweep."
            )
        return replace(cores, threads=threads)

    def plan(self, jobs: Sequence[Job], cores: SweepCores) -> list[Step]:
        """What becomes of each job, in the order of the jobs: each configuration as often as one invocation has it."""
        wanted = _without_duplicates([(job, expected_hashed_config(job.config, cores.context())) for job in jobs])
        hashes = [config_hashes(content)[0] for _, content in wanted]
        same = self._same(wanted, hashes)
        left = [run for run in self.runs if run.config_hash not in hashes]
        never_started, nameless = self.never_started(), {run.number: run for run in self.runs if run.is_unidentified}
        number = max([*(run.number for run in self.runs), *never_started], default=-1) + 1
        # Of what ended before it could say what it was, the numbers are taken again, by the plan or in the jobs' order.
        free = [each for each in nameless if each not in never_started]
        steps = []
        for (job, content), run in zip(wanted, same, strict=True):
            alike = [each for each in left if _has_same_overrides(each, job)]
            run = run or next((each for each in alike if not each.is_completed), None)
            if run is not None and run.is_completed:
                steps.append(keep_completed(run, job))
            elif run is not None:
                left = [each for each in left if each is not run]
                steps.append(retry(run, job, content))
            else:
                decision = f"new{config_changes(alike[0], content) if alike else ''}"
                own = next(
                    (each for each, swept in never_started.items() if _is_planned_as(job.overrides, swept)), None
                )
                if own is not None:
                    del never_started[own]
                elif free:
                    own = free.pop(0)
                else:
                    own, number = number, number + 1
                steps.append(Step(own, job.overrides, decision, nameless.get(own)))
        return steps

    def _same(
        self, wanted: "Sequence[tuple[Job, Mapping[str, Any]]]", hashes: Sequence[str]
    ) -> list[EarlierRun | None]:
        """For each job the run of the same configuration: the one of the same overrides, or else a completed one."""
        left = list(self.runs)
        found: list[EarlierRun | None] = [None] * len(wanted)
        for suits in _MATCHERS:
            for place, (job, _) in enumerate(wanted):
                run = next((each for each in left if each.config_hash == hashes[place] and suits(each, job)), None)
                if found[place] is None and run is not None:
                    found[place] = run
                    left.remove(run)
        return found

    def steps_outside_request(self, steps: Sequence[Step]) -> list[Step]:
        """What is to be known of the runs that none of the jobs is."""
        found = []
        for run in self.runs:
            if any(step.run is run for step in steps):
                continue
            if not run.is_completed:
                decision = f"{run.end_text}, not among these jobs: left as it is"
            elif changed := condition_changes(run, run.config):
                decision = f"completed{changed}"
            else:
                continue
            found.append(Step(run.number, run.overrides, decision, run, is_done=True))
        for number, swept in self.never_started().items():
            if all(step.number != number for step in steps):
                decision = f"never began, not among these jobs: {KEY} without other values runs it"
                found.append(Step(number, swept.split(), decision, is_done=True))
        return found

    def never_started(self) -> dict[int, str]:
        """What is swept in the runs that the sweep was to have and has no directory for, by number."""
        here = {run.number for run in self.runs if not run.is_unidentified}
        return {number: swept for number, swept in read_plan(self.path).items() if number not in here}


def open_sweep(asked: str, read_only: bool = False) -> EarlierSweep:
    """Find an earlier sweep, and mark it as in use by this process.

    Args:
        asked: the value of `sweep.resume`: a directory, or latest.
        read_only: nothing is written, and nothing will be.

    Raises:
        UserError: there is none, it is no sweep that can be resumed, or it is still running.
    """
    key = f"{KEY}={asked}"
    path = _found(key, asked)
    typed = _read_history(key, path)
    # Taken before anything is looked at that another might change.
    pid = owner_pid(path) if read_only else claim(path)
    if pid is not None:
        process = f" (process {pid})" if pid else ""
        raise UserError(f"{key}: this sweep is still running{process}. Wait, or end it first.")
    runs = [read_run(number, each, typed.output_subdir) for number, each in sorted(numbered_runs(path).items())]
    for run in runs:
        if pids := running_ranks(run):
            raise UserError(
                f"{key}: run {run.number} is still running (process {', '.join(map(str, pids))}). Wait, or end it "
                "first."
            )
    return EarlierSweep(key, path, typed, runs)


def _found(key: str, asked: str) -> Path:
    """The directory of the sweep that was asked for, absolute."""
    found = next(iter(newest_sweeps()), None) if asked == "latest" else expanded(KEY, asked)
    if found is None:
        raise UserError(f"{key}: there is no sweep below multirun/.")
    if not found.is_dir():
        raise UserError(f"{key}: there is no such directory. Name a sweep's, or latest.{_list_newest()}")
    if not (found / SWEEP_FILE).is_file():
        raise UserError(
            f"{key}: is no sweep, it has no {SWEEP_FILE}. Name a sweep's directory, or latest.{_list_newest()}"
        )
    return found.absolute()


def _archived_files(sweep_dir: Path) -> list[str]:
    """The copies of Hydra's file of what was typed, the first first; the last time's has its own name."""
    names: list[str] = []
    while (sweep_dir / (name := f"multirun-{len(names)}.yaml")).is_file():
        names.append(name)
    return names


def _read_history(key: str, sweep_dir: Path) -> _InvocationHistory:
    files = [_read(key, sweep_dir, name) for name in (*_archived_files(sweep_dir), SWEEP_FILE)]
    last = files[-1]
    return _InvocationHistory(
        [persistent_overrides(file.overrides) for file in files],
        None if last.config_name == CONFIG_NAME else last.config_name,
        last.config_dir,
        last.output_subdir or HYDRA_DIR,
        had_notify=any(find(file.overrides, security.NOTIFY_KEY) is not None for file in files),
    )


def _read(key: str, sweep_dir: Path, name: str) -> SweepFile:
    try:
        file = read_sweep_file(sweep_dir, name)
    except HydraFileError as error:
        raise UserError(f"{key}: {name} is not what Hydra writes ({error}).") from error
    if not file.is_complete:
        raise UserError(f"{key}: {name} is not what Hydra writes (KeyError).")
    if (why_not := _why_not_resumed(file)) is not None:
        raise UserError(f"{key}: {why_not}")
    return file


def can_be_resumed(sweep_dir: Path) -> bool:
    """Whether `sweep.resume` takes a sweep when it has ended."""
    try:
        file = read_sweep_file(sweep_dir)
    except HydraFileError:
        return False
    return file.is_complete and _why_not_resumed(file) is None


def resume_command(sweep_dir: Path) -> str:
    """The command that resumes a sweep, with the flags that the sweep was started with."""
    file = read_sweep_file(sweep_dir)
    flags = [] if file.config_name in (None, CONFIG_NAME) else ["--config-name", str(file.config_name)]
    flags += [] if file.config_dir is None else ["--config-dir", relative(Path(file.config_dir))]
    return f"{program('train')} {shlex.join([*flags, f'{KEY}={relative(sweep_dir)}'])}"


def _why_not_resumed(file: SweepFile) -> str | None:
    """Why a sweep with these settings of Hydra's can't be resumed; None: it can."""
    if not str(file.sweeper["_target_"]).endswith("RepeatingSweeper"):
        return "is a search, whose sweeper chose its trials as it went. Start a new one."
    if file.subdir != "${hydra.job.num}":
        return f"hydra.sweep.subdir={file.subdir} gave its runs no numbers. Start a new sweep."
    if file.output_subdir is None:
        return "hydra.output_subdir=null kept nothing of what its runs were given. Start a new sweep."
    return None


def _list_newest() -> str:
    """The newest sweeps that could be meant, as a second line."""
    names = ", ".join(map(str, newest_sweeps()[:5]))
    return f"\nThe newest: {names}." if names else ""


def _without_duplicates(jobs: Sequence[tuple[Job, dict[str, Any]]]) -> list[tuple[Job, dict[str, Any]]]:
    """Of jobs of one configuration those of the invocation that has most of them."""
    hashes = [config_hashes(content)[0] for _, content in jobs]
    counts = Counter((of_job, job.invocation) for of_job, (job, _) in zip(hashes, jobs, strict=True))
    most: dict[str, int] = {}
    for of_job, invocation in counts:  # in the order of the jobs: of as many the first
        if of_job not in most or counts[of_job, invocation] > counts[of_job, most[of_job]]:
            most[of_job] = invocation
    return [each for of_job, each in zip(hashes, jobs, strict=True) if each[0].invocation == most[of_job]]


def _has_same_overrides(run: EarlierRun, job: Job) -> bool:
    return set(persistent_overrides(run.overrides)) == set(persistent_overrides(job.overrides))


# Of several runs of a job's configuration: which stands for the job, the best first.
_MATCHERS: tuple[Callable[[EarlierRun, Job], bool], ...] = (
    _has_same_overrides,
    lambda run, job: run.is_completed,
    lambda run, job: True,
)


def _is_planned_as(overrides: Sequence[str], swept: str) -> bool:
    """Whether a job is the one that a sweep's plan knows by what is swept in it."""
    planned = {override_by_new_name(each) for each in swept.split()}
    return planned <= set(" ".join(mask_command(overrides)).split())


def all_overrides(runs: Sequence[EarlierRun], jobs: Sequence[Job]) -> list[list[str]]:
    """The overrides of the earlier runs and of the jobs now, to tell each from the others by what was swept: what all
    jobs share now is no difference from a run that was not given it."""
    shared = set.intersection(*(set(job.overrides) for job in jobs))
    earlier = []
    for run in runs:
        keys = {parse(override).full_key for override in run.overrides}
        earlier.append([*run.overrides, *(each for each in shared if parse(each).full_key not in keys)])
    return [*earlier, *(job.overrides for job in jobs)]
