"""Plan a resumed sweep (`sweep.resume`): which runs are kept, which are retried, and which are new.

Nothing is written here; laptime.sweeps.command prints the decisions and carries them out.
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
from laptime.record.directory import claim, expanded, numbered_runs, owner_pid
from laptime.record.files import SWEEP_FILE, write_atomically
from laptime.record.hashes import config_hashes
from laptime.record.hydra_files import HYDRA_DIR, HydraFileError, SweepFile, read_sweep_file
from laptime.record.latest import newest_sweeps
from laptime.record.masking import mask_command
from laptime.record.plan import read_plan
from laptime.record.renamed import override_by_new_name
from laptime.record.schema import filled
from laptime.sweeps.core_slots import CoreSlots, SweepCores
from laptime.sweeps.earlier import EarlierRun, read_run, running_ranks
from laptime.sweeps.overrides import FIXED, KEY, merge_overrides, persistent_overrides
from laptime.sweeps.rerun_rules import Job, Step, condition_changes, config_changes, keep_completed, retry
from laptime.terminal import relative


@dataclass(frozen=True)
class _InvocationHistory:
    """Earlier command lines of a sweep, read from Hydra's files in its directory.

    Attributes:
        invocations: the overrides of each command line, oldest first.
        config_name, config_dir: the flags of the last one; None: not set.
        output_subdir: Hydra's folder in a run directory.
        had_notify: whether `sweep.notify` was set.
    """

    invocations: list[list[str]]
    config_name: str | None
    config_dir: str | None
    output_subdir: str
    had_notify: bool


@dataclass(frozen=True)
class EarlierSweep:
    """A sweep that no process is running. `open_sweep` returns it.

    Attributes:
        override: the override that names it, for messages.
        path: the absolute path of its directory.
        history: its earlier command lines.
        runs: its runs, in the order of their numbers.
    """

    override: str
    path: Path
    history: _InvocationHistory
    runs: list[EarlierRun]

    def invocations(self, cli_overrides: Sequence[str]) -> list[list[str]]:
        """Return the command lines to plan jobs from.

        With current overrides, it is the first command line of the sweep, merged with them. Without, they are all
        earlier command lines.

        Raises:
            UserError: an override can't be changed.
        """
        if not cli_overrides:
            return self.history.invocations
        if (fixed := find(cli_overrides, *FIXED)) is not None:
            raise UserError(
                f"{fixed.text}: can't be changed when a sweep is resumed. Leave it out, or leave {KEY} out."
            )
        return [merge_overrides(self.history.invocations[0], cli_overrides)]

    def require_same_configuration(self, config_name: str | None, config_dir: str | None) -> None:
        """Refuse to compose the runs from other configuration files than before.

        Args:
            config_name, config_dir: the flags of the current command line. They are never taken from the sweep's files,
                which could name any folder.
        """
        for flag, before, now in (
            ("--config-name", self.history.config_name, config_name),
            ("--config-dir", self.history.config_dir, config_dir),
        ):
            if before is not None and now is None:
                raise UserError(f"{self.override}: this sweep was started with {flag} {before}. Add it.")
            if before is None and now is not None:
                raise UserError(f"{self.override}: this sweep was started without {flag}. Leave it out.")
        if self.history.config_name != config_name:
            raise UserError(
                f"{self.override}: this sweep was started with --config-name {self.history.config_name}, "
                f"not {config_name}."
            )

    def archive_invocation(self, overrides: Sequence[str]) -> None:
        """Keep a copy of Hydra's file of the last command line before a different one replaces it."""
        if list(overrides) != self.history.invocations[-1]:
            number = len(_archived_names(self.path))
            write_atomically(self.path / f"multirun-{number}.yaml", (self.path / SWEEP_FILE).read_bytes())

    def unfinished(self) -> list[list[str]]:
        """Return the overrides of each incomplete run, including repeats that the sweep added by itself."""
        return [persistent_overrides(run.overrides) for run in self.runs if not run.is_completed and run.overrides]

    def cores(self, configs: Sequence[Config], slots: CoreSlots | None = None) -> SweepCores:
        """Divide the cores so that `strategy.threads_per_rank=auto` has the same value as in the earlier runs.

        Args:
            configs: the configurations of the current jobs.
            slots: the core slots; None: each run has all cores.

        Raises:
            UserError: the value would be different.
        """
        from laptime.machine.device import usable_cores  # loads torch
        from laptime.runner.rank_plan import num_ranks

        cores = SweepCores(max(num_ranks(config) for config in configs), slots)
        earlier_threads = {
            filled(run.record.strategy).threads_per_rank
            for run in self.runs
            if run.record is not None and run.record.config_hash is not None
            if run.config["strategy"]["threads_per_rank"] == "auto"
        }
        if not earlier_threads or all(config.strategy.threads_per_rank != "auto" for config in configs):
            return cores
        threads = min(cores.threads_per_rank(), max(earlier_threads))
        if threads not in earlier_threads:
            before = " or ".join(map(str, sorted(earlier_threads)))
            at_once = f" in {cores.runs_at_once} concurrent runs" if cores.runs_at_once > 1 else ""
            raise UserError(
                f"strategy.threads_per_rank=auto: means {threads} with up to {cores.largest_world_size} ranks{at_once} "
                f"on {usable_cores()} cores, but meant {before} in {self.path.name}; timings would not be comparable. "
                f"Set strategy.threads_per_rank={before}, or start a new sweep."
            )
        return replace(cores, threads=threads)

    def plan(self, jobs: Sequence[Job], cores: SweepCores) -> list[Step]:
        """Decide what is done with each job, in the order of the jobs. Duplicates across command lines are merged."""
        from laptime.runner.rank_plan import expected_hashed_config  # loads torch

        planned = _without_duplicates([(job, expected_hashed_config(job.config, cores.context())) for job in jobs])
        hashes = [config_hashes(hashed)[0] for _, hashed in planned]
        matching_runs = self._match_runs(planned, hashes)
        unmatched = [run for run in self.runs if run.config_hash not in hashes]
        never_started = self.never_started()
        unidentified = {run.number: run for run in self.runs if run.is_unidentified}
        next_number = max([*(run.number for run in self.runs), *never_started], default=-1) + 1
        # Numbers of runs without overrides are reused by the job that the plan has there, or in the order of the jobs.
        free_numbers = [number for number in unidentified if number not in never_started]
        steps = []
        for (job, hashed), run in zip(planned, matching_runs, strict=True):
            same_overrides = [earlier for earlier in unmatched if _has_same_overrides(earlier, job)]
            run = run or next((earlier for earlier in same_overrides if not earlier.is_completed), None)
            if run is not None and run.is_completed:
                steps.append(keep_completed(run, job))
            elif run is not None:
                unmatched = [earlier for earlier in unmatched if earlier is not run]
                steps.append(retry(run, job, hashed))
            else:
                decision = f"new{config_changes(same_overrides[0], hashed) if same_overrides else ''}"
                number = next((n for n, swept in never_started.items() if _is_planned_as(job.overrides, swept)), None)
                if number is not None:
                    del never_started[number]
                elif free_numbers:
                    number = free_numbers.pop(0)
                else:
                    number, next_number = next_number, next_number + 1
                steps.append(Step(number, job.overrides, decision, unidentified.get(number)))
        return steps

    def _match_runs(
        self, planned: "Sequence[tuple[Job, Mapping[str, Any]]]", hashes: Sequence[str]
    ) -> list[EarlierRun | None]:
        """Return the earlier run with each job's configuration, preferably with the same overrides, or completed."""
        unmatched = list(self.runs)
        matches: list[EarlierRun | None] = [None] * len(planned)
        for is_match in _MATCHERS:
            for index, (job, _) in enumerate(planned):
                run = next((r for r in unmatched if r.config_hash == hashes[index] and is_match(r, job)), None)
                if matches[index] is None and run is not None:
                    matches[index] = run
                    unmatched.remove(run)
        return matches

    def steps_outside_request(self, steps: Sequence[Step]) -> list[Step]:
        """Return remarks on the runs that belong to none of the jobs, as steps with nothing to do."""
        remarks = []
        for run in self.runs:
            if any(step.run is run for step in steps):
                continue
            if not run.is_completed:
                decision = f"{run.end_text}; not part of this command: left unchanged"
            elif changed := condition_changes(run, run.config):
                decision = f"completed{changed}"
            else:
                continue
            remarks.append(Step(run.number, run.overrides, decision, run, is_done=True))
        for number, swept in self.never_started().items():
            if all(step.number != number for step in steps):
                decision = f"not started; not part of this command. Run `{KEY}` alone to include it"
                remarks.append(Step(number, swept.split(), decision, is_done=True))
        return remarks

    def never_started(self) -> dict[int, str]:
        """Return the swept overrides of planned runs that have no directory yet, by number."""
        started = {run.number for run in self.runs if not run.is_unidentified}
        return {number: swept for number, swept in read_plan(self.path).items() if number not in started}


def open_sweep(name: str, read_only: bool = False) -> EarlierSweep:
    """Find an earlier sweep, and mark it as in use by this process.

    Args:
        name: the value of `sweep.resume`: a directory, or latest.
        read_only: whether to write no mark.

    Raises:
        UserError: there is no such sweep, it can't be resumed, or it is still running.
    """
    override = f"{KEY}={name}"
    path = _find_sweep(override, name)
    history = _read_history(override, path)
    # Claim it before reading the runs, which another process might change.
    pid = owner_pid(path) if read_only else claim(path)
    if pid is not None:
        process = f" (process {pid})" if pid else ""
        raise UserError(f"{override}: this sweep is still running{process}. Wait for it, or stop it first.")
    numbered = sorted(numbered_runs(path).items())
    runs = [read_run(number, run_dir, history.output_subdir) for number, run_dir in numbered]
    for run in runs:
        if pids := running_ranks(run):
            raise UserError(
                f"{override}: run {run.number} is still running (process {', '.join(map(str, pids))}). Wait for it, "
                "or stop it first."
            )
    return EarlierSweep(override, path, history, runs)


def _find_sweep(override: str, name: str) -> Path:
    """Return the absolute path of the sweep that `name` means: a directory, or latest."""
    path = next(iter(newest_sweeps()), None) if name == "latest" else expanded(KEY, name)
    if path is None:
        raise UserError(f"{override}: there is no sweep below multirun/.")
    if not path.is_dir():
        raise UserError(
            f"{override}: there is no such directory. Give the directory of a sweep, or latest.{_list_newest()}"
        )
    if not (path / SWEEP_FILE).is_file():
        raise UserError(
            f"{override}: must be a sweep, but has no {SWEEP_FILE}. Give the directory of a sweep, or "
            f"latest.{_list_newest()}"
        )
    return path.absolute()


def _archived_names(sweep_dir: Path) -> list[str]:
    """Return the names of the copies of earlier multirun.yaml files, oldest first."""
    names: list[str] = []
    while (sweep_dir / (name := f"multirun-{len(names)}.yaml")).is_file():
        names.append(name)
    return names


def _read_history(key: str, sweep_dir: Path) -> _InvocationHistory:
    files = [_read(key, sweep_dir, name) for name in (*_archived_names(sweep_dir), SWEEP_FILE)]
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
        raise UserError(f"{key}: {name} was not written by Hydra, or is damaged ({error}).") from error
    if not file.is_complete:
        raise UserError(f"{key}: {name} was not written by Hydra, or is damaged (KeyError).")
    if (obstacle := _obstacle(file)) is not None:
        raise UserError(f"{key}: {obstacle}")
    return file


def resume_command(sweep_dir: Path) -> str | None:
    """Return the command that resumes a sweep, with the flags that started it; None: it can't be resumed."""
    try:
        file = read_sweep_file(sweep_dir)
    except HydraFileError:
        return None
    if not file.is_complete or _obstacle(file) is not None:
        return None
    flags = [] if file.config_name in (None, CONFIG_NAME) else ["--config-name", str(file.config_name)]
    flags += [] if file.config_dir is None else ["--config-dir", relative(Path(file.config_dir))]
    return f"{program('train')} {shlex.join([*flags, f'{KEY}={relative(sweep_dir)}'])}"


def _obstacle(file: SweepFile) -> str | None:
    """Return why a sweep with these settings of Hydra can't be resumed; None: it can."""
    if not str(file.sweeper["_target_"]).endswith("RepeatingSweeper"):
        return "a search can't be resumed, because it chose its trials while it ran. Start a new one."
    if file.subdir != "${hydra.job.num}":
        return f"its run directories are not numbered (hydra.sweep.subdir={file.subdir}). Start a new sweep."
    if file.output_subdir is None:
        return "the overrides of its runs were not saved (hydra.output_subdir=null). Start a new sweep."
    return None


def _list_newest() -> str:
    """List the newest sweeps in the second line of a message."""
    names = ", ".join(map(str, newest_sweeps()[:5]))
    return f"\nThe newest: {names}." if names else ""


def _without_duplicates(jobs: Sequence[tuple[Job, dict[str, Any]]]) -> list[tuple[Job, dict[str, Any]]]:
    """Keep the jobs of a configuration only from the command line that has most of them; in a tie, from the first.

    Args:
        jobs: the jobs, each with its hashed configuration.
    """
    hashes = [config_hashes(hashed)[0] for _, hashed in jobs]
    counts = Counter((config_hash, job.invocation) for config_hash, (job, _) in zip(hashes, jobs, strict=True))
    kept: dict[str, int] = {}
    for config_hash, invocation in counts:
        if config_hash not in kept or counts[config_hash, invocation] > counts[config_hash, kept[config_hash]]:
            kept[config_hash] = invocation
    return [item for config_hash, item in zip(hashes, jobs, strict=True) if item[0].invocation == kept[config_hash]]


def _has_same_overrides(run: EarlierRun, job: Job) -> bool:
    return set(persistent_overrides(run.overrides)) == set(persistent_overrides(job.overrides))


# Rules for which of several runs with a job's configuration is matched to the job, best first.
_MATCHERS: tuple[Callable[[EarlierRun, Job], bool], ...] = (
    _has_same_overrides,
    lambda run, job: run.is_completed,
    lambda run, job: True,
)


def _is_planned_as(overrides: Sequence[str], swept: str) -> bool:
    """Whether a job is the run in a sweep's plan that has these swept overrides."""
    planned = {override_by_new_name(override) for override in swept.split()}
    return planned <= set(" ".join(mask_command(overrides)).split())


def all_overrides(runs: Sequence[EarlierRun], jobs: Sequence[Job]) -> list[list[str]]:
    """The overrides of earlier runs and current jobs, for finding the swept ones. Earlier runs get the overrides that
    all current jobs share, so that these don't count as swept."""
    shared = set.intersection(*(set(job.overrides) for job in jobs))
    earlier = []
    for run in runs:
        keys = {parse(override).full_key for override in run.overrides}
        earlier.append([*run.overrides, *(override for override in shared if parse(override).full_key not in keys)])
    return [*earlier, *(job.overrides for job in jobs)]
