"""The jobs of a sweep, run by Hydra's launcher: one after the other in this process, or several at once in others."""

import json
import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import psutil
import yaml

from laptime.config.compose import experiment_of
from laptime.config.overrides import key_of, parse
from laptime.config.security import OF_NOW
from laptime.errors import Interrupted, LauncherFailed, RankFailed, TrainingFailed, UserError, in_words
from laptime.ranks.stopping import handling_signals
from laptime.record.directory import RunDir, hostname_hash, numbered_runs
from laptime.record.files import (
    SWEEP_FILE,
    end_without_launcher,
    read_plan,
    write_atomically,
    write_plan,
)
from laptime.record.masking import mask_command, mask_text
from laptime.runner.job import folder_name, run_job
from laptime.sweeps import optuna_faults
from laptime.sweeps.core_shares import CoreShares
from laptime.sweeps.hydra_jobs import run_sweep
from laptime.sweeps.notify import notify
from laptime.terminal import relative, unread

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra
    from omegaconf import DictConfig

    from laptime.sweeps.rerun_rules import Step

# A resumed sweep may be given other values of these. They do not tell its runs apart.
_OF_NO_RUN = ("measure.target_interval", "measure.max_repeats", "sweep.on_failure")
# Where processes of a sweep say what has become of their runs, below its directory, as long as it goes on.
_OUTCOMES = ".outcomes"
_STOP = "stop"
_ENDED = "its process was ended"


@dataclass(frozen=True)
class Outcome:
    """What has become of a run.

    Attributes:
        run: its number and what is swept in it.
        status: begun, completed, failed or interrupted.
        message: why it failed.
        exit_code: what it asks of the whole sweep's.
        pid, host: the process that runs it.
    """

    run: str
    status: str
    message: str = ""
    exit_code: int = 0
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=hostname_hash)

    @property
    def number(self) -> int:
        return int(self.run.partition(" ")[0])


@dataclass
class Sweep:
    """What is to be run, and what has become of it so far.

    Also the function that Hydra calls for each job: launchers send a copy of it to other processes.

    Attributes:
        path: of the sweep, absolute.
        typed: the overrides of the command line, alone.
        jobs: overrides of every job, as far as they are known: a sweeper may choose them as it goes.
        num_jobs: how many there will be.
        sweep_world_size: the largest of them.
        command: to tell how it goes (`sweep.notify`); None: nobody is told.
        shares: of the machine's cores, for runs at once; None: one at a time.
        known: the overrides of every run that the sweep has or is to have, by number.
        todo: of those that are to be run now.
        checked: `snapshot` of each configuration that was checked, by number.
        steps: what becomes of each run of a sweep that is resumed, by number; empty: this is a new one.
        chooses: whether its sweeper chooses the jobs as it goes: `jobs` only stand for what it may choose.
    """

    path: Path
    typed: Sequence[str]
    jobs: list[list[str]]
    num_jobs: int
    sweep_world_size: int
    command: str | None = None
    shares: CoreShares | None = None
    known: dict[int, list[str]] = field(default_factory=dict)
    todo: Mapping[int, list[str]] = field(default_factory=dict)
    checked: Mapping[int, bytes] = field(default_factory=dict)
    steps: "Mapping[int, Step]" = field(default_factory=dict)
    chooses: bool = False
    _outcomes: dict[str, Outcome] = field(default_factory=dict)
    _owner: int = field(default_factory=os.getpid)
    _typed_command: list[str] = field(default_factory=lambda: command_line())
    _sys_path: list[str] = field(default_factory=lambda: list(sys.path))

    def run(self, hydra: "Hydra", settings: "DictConfig") -> int:
        """Let Hydra run the jobs; a failed one doesn't stop the others.

        Args:
            settings: of the whole sweep, see laptime.sweeps.hydra_jobs.

        Returns:
            The exit code.

        Raises:
            UserError: the sweeper could not begin; no job has.
        """
        from laptime.analysis.sweep_callback import report_sweep

        planned = {number: self._swept(overrides) for number, overrides in self.todo.items()}
        write_plan(self.path, read_plan(self.path) | (planned or dict.fromkeys(range(self.num_jobs), "")), starts=True)
        exit_code = 0
        try:
            with self._handling_signals(), optuna_faults.forgiven() if self.chooses else nullcontext():
                run_sweep(hydra, settings, self)
        except optuna_faults.Refused as refused:
            raise UserError(str(refused)) from refused
        except (SystemExit, LauncherFailed) as end:
            exit_code = end.code if isinstance(end, SystemExit) and isinstance(end.code, int) else 1
            if isinstance(end, LauncherFailed):
                print(f"error: {end}", file=sys.stderr)
            self._end_records()
            if self._all():  # Hydra's callback is not called then
                report_sweep(self.path)
        else:
            if self.chooses:  # it may have had fewer to choose from than it was allowed
                self.num_jobs = len(self._all())
                write_plan(self.path, dict.fromkeys(range(self.num_jobs), ""))
        exit_code = max([exit_code, self._stopped() or 0, *(each.exit_code for each in self._all())])
        self._say_how_it_ended(exit_code)
        self._forget()
        return exit_code

    def __call__(self, cfg: "DictConfig") -> Any:
        """One job: what Hydra's sweepers optimise; None where that was not measured."""
        from hydra.core.hydra_config import HydraConfig

        job = HydraConfig.get()
        if self._stopped() is not None:
            return None
        sys.path += [place for place in self._sys_path if place not in sys.path]
        step = self.steps.get(job.job.num)
        overrides = self._that_may_differ(list(job.overrides.task))
        with self._share() as sweep_world_size:
            if self._stopped() is not None:  # while it waited for its cores
                return None
            run = self._announce(job.job.num, overrides)
            try:
                cfg.run_label = sweep_label(overrides, self.jobs)
                cfg.experiment_name = experiment_of(cast("DictConfig", HydraConfig.instance().cfg))
                cfg.runs_at_once = 1 if self.shares is None else self.shares.num
                if step is None or step.run is None:
                    path, goes_on = RunDir(job.runtime.output_dir, may_move=False).path, False
                else:
                    path, goes_on = step.run.path, step.goes_on
                    if goes_on:
                        cfg.run_label = step.run.label
                    else:
                        from laptime.sweeps.earlier import set_aside

                        set_aside(path)
                tag = f"[run {job.job.num}] " if self.shares is not None else ""
                record = run_job(
                    cfg, path, self._typed_command, time.time(), self.typed, sweep_world_size, goes_on, tag,
                    self.checked.get(job.job.num),
                )  # fmt: skip
                self._note(Outcome(run, "completed"))
                return objective(record)
            except Interrupted as interruption:
                self._note(Outcome(run, "interrupted", exit_code=interruption.exit_code))
                self._stop(interruption.exit_code)
            except Exception as error:
                self._fail(run, error, cfg.sweep.on_failure, _secrets_of(cfg))
        return None

    def plan(self, jobs: Sequence[list[str]]) -> dict[int, list[str]]:
        """Give further runs their numbers, and write down that there will be such."""
        first = max([*self.known, *read_plan(self.path), *numbered_runs(self.path)], default=-1) + 1
        further = dict(enumerate(jobs, start=first))
        self.known |= further
        write_plan(self.path, read_plan(self.path) | {number: self._swept(job) for number, job in further.items()})
        return further

    def could_not_start(self, number: int, overrides: list[str], error: OSError, on_failure: str) -> None:
        """A job of which the launcher could not even make the directory."""
        self._fail(self._announce(number, overrides), error, on_failure)

    def _announce(self, number: int, overrides: list[str]) -> str:
        swept = self._swept(overrides)
        print(f"\nrun {number} of the sweep: {swept}", file=sys.stderr)
        run = f"{number} ({swept})"
        self._note(Outcome(run, "begun"))
        return run

    def _fail(self, run: str, error: Exception, on_failure: str, secrets: Collection[str] = ()) -> None:
        if isinstance(error, UserError):
            print(f"error: {mask_text(str(error), secrets)}", file=sys.stderr)
        elif isinstance(error, OSError):
            print(f"error: {in_words(error)}", file=sys.stderr)
        elif not isinstance(error, TrainingFailed | RankFailed):
            traceback.print_exception(error)
        message = mask_text(str(error), secrets)
        exit_code = getattr(error, "exit_code", 1)
        self._note(Outcome(run, "failed", message, exit_code))
        notify(self.command, "run-failed", self.path, mask_text(f"run {run}: {message}", secrets))
        if on_failure == "stop":
            self._stop(max([exit_code, *(each.exit_code for each in self._all())]))

    # What has become of the runs: kept here by the process that has the sweep, and in files by those that it started.

    @property
    def _is_here(self) -> bool:
        return os.getpid() == self._owner

    def _note(self, outcome: Outcome) -> None:
        if self._is_here:
            self._outcomes[outcome.run] = outcome
            return
        with suppress(OSError):  # a full disk: then the run has no outcome but in its record
            self._write(f"{outcome.number}.json", json.dumps(asdict(outcome)))

    def _write(self, name: str, text: str) -> None:
        (self.path / _OUTCOMES).mkdir(exist_ok=True)
        write_atomically(self.path / _OUTCOMES / name, text.encode())

    def _all(self) -> list[Outcome]:
        """Of every run that has begun so far."""
        found = dict(self._outcomes)
        for path in (self.path / _OUTCOMES).glob("*.json"):
            with suppress(OSError, ValueError, TypeError):
                outcome = Outcome(**json.loads(path.read_bytes()))
                found[outcome.run] = outcome
        return sorted(found.values(), key=lambda outcome: outcome.number)

    def _stop(self, exit_code: int) -> None:
        """Let no further run begin."""
        if self._is_here and self.shares is None:
            sys.exit(exit_code)
        with suppress(OSError):
            self._write(_STOP, str(exit_code))

    def _stopped(self) -> int | None:
        """The exit code with which the sweep is to end early; None: it goes on."""
        try:
            return int((self.path / _OUTCOMES / _STOP).read_text())
        except (OSError, ValueError):
            return None

    def _end_records(self) -> None:
        """Runs whose process was ended from outside have failed, though nobody was left to write it down."""
        found = numbered_runs(self.path) if self.path.is_dir() else {}
        for each in self._all():
            path = found.get(each.number)
            if each.status != "begun" or path is None or each.host != hostname_hash() or psutil.pid_exists(each.pid):
                continue
            with suppress(OSError, ValueError, KeyError):
                end_without_launcher(path, _ENDED)

    def _forget(self) -> None:
        with suppress(OSError):
            for path in (self.path / _OUTCOMES).iterdir():
                path.unlink()
            (self.path / _OUTCOMES).rmdir()

    @contextmanager
    def _handling_signals(self) -> Iterator[None]:
        """A signal between two runs ends the sweep as one during a run does, with all that is said at its end; one that
        comes while runs go on in other processes is passed on to them."""

        def handle(signum: int, frame: FrameType | None) -> None:
            if self.shares is None or self._stopped() is not None:
                sys.exit(128 + signum)
            self._stop(128 + signum)
            if not (signum == signal.SIGINT and _is_in_the_foreground()):  # there the terminal has told all of them
                for each in self._all():
                    if each.status == "begun" and each.host == hostname_hash() and each.pid != os.getpid():
                        with suppress(ProcessLookupError):
                            os.kill(each.pid, signum)

        with handling_signals(handle):
            yield

    @contextmanager
    def _share(self) -> Iterator[int]:
        """With cores of its own, where several runs go on at once: the world size that its threads follow from."""
        if self.shares is None:
            yield self.sweep_world_size
            return
        (self.path / _OUTCOMES).mkdir(exist_ok=True)
        with self.shares.take(self.path / _OUTCOMES) as has_own_cores:
            yield self.sweep_world_size if has_own_cores else self.sweep_world_size * self.shares.num

    def _say_how_it_ended(self, exit_code: int) -> None:
        found = self._all()
        failed = [each for each in found if each.status == "failed"]
        # A process that was killed has said nothing any more.
        failed += [each for each in found if each.status == "begun"]
        from laptime.sweeps.resume import can_be_resumed

        num_jobs = max(self.num_jobs, len(found))
        if failed:
            lines = [f"{each.run}: {each.message or _ENDED}" for each in failed]
            print(f"\n{len(failed)} of {num_jobs} runs of the sweep failed:", *lines, sep="\n  ", file=sys.stderr)
        if exit_code and len(found) < num_jobs:
            print(f"\n{num_jobs - len(found)} of {num_jobs} runs of the sweep were not started.", file=sys.stderr)
        with unread():
            for line in _best(self.path):
                print(f"Best         {line}")
            print(f"Sweep        {relative(self.path)}")
            if exit_code and can_be_resumed(self.path):
                print(f"To finish it: {shlex.quote(f'sweep.resume={relative(self.path)}')}")
        num_completed = sum(each.status == "completed" for each in found)
        event = "sweep-failed" if exit_code else "sweep-completed"
        notify(self.command, event, self.path, f"{num_completed} of {num_jobs} runs completed")

    def _that_may_differ(self, overrides: list[str]) -> list[str]:
        # A sweeper that chooses writes what all its jobs share in words of its own: False for false.
        if not self.chooses:
            return overrides
        shared = {parse(each).full_key for each in set.intersection(*map(set, self.jobs))}
        return [each for each in overrides if parse(each).full_key not in shared]

    def _swept(self, overrides: list[str]) -> str:
        return " ".join(swept(overrides, self.jobs))


def num_trials(composed: "DictConfig") -> int | None:
    """How many jobs a sweeper will choose as it goes; None: they are known before."""
    from omegaconf import OmegaConf

    trials = OmegaConf.select(composed, "hydra.sweeper.n_trials")
    return None if trials is None else int(trials)


def _best(sweep_dir: Path) -> list[str]:
    """What Optuna's sweeper found best, where it has searched for one thing."""
    try:
        found = yaml.safe_load((sweep_dir / "optimization_results.yaml").read_text("utf-8"))
        metric = yaml.safe_load((sweep_dir / SWEEP_FILE).read_text("utf-8"))["optimized_metric"]
        values = " ".join(f"{key}={value}" for key, value in found["best_params"].items())
        return [f"{metric} {found['best_value']:.4g} with {values}"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return []


def _is_in_the_foreground() -> bool:
    """Whether Ctrl-C on a terminal reaches this process, and then its children too."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except (OSError, AttributeError):
        return False


def _secrets_of(cfg: "DictConfig") -> Collection[str]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from laptime.record.masking import secret_values

    try:
        return secret_values(OmegaConf.to_container(cfg, resolve=True))
    except OmegaConfBaseException:
        return ()


def swept_overrides(overrides: list[str], jobs: list[list[str]]) -> list[str]:
    """Those overrides of a job that not every job of the sweep has."""
    same_everywhere = set.intersection(*(set(job) for job in jobs)) if jobs else set()
    return [override for override in overrides if override not in same_everywhere]


def swept(overrides: list[str], jobs: list[list[str]]) -> list[str]:
    """What tells a job of a sweep from the others, without secrets."""
    found = [each for each in swept_overrides(overrides, jobs) if key_of(each) not in (*_OF_NO_RUN, *OF_NOW)]
    return mask_command(found)


def sweep_label(overrides: list[str], jobs: list[list[str]]) -> str:
    """What tells a job of a sweep from the others, short enough for a folder's name, without secrets: `ws=2 seed=1`.

    Args:
        overrides: of the job.
        jobs: overrides of every job of the sweep.
    """
    short = {"strategy.world_size": "ws"}
    parts = []
    for each in map(parse, swept(overrides, jobs)):
        key = f"~{each.full_key}" if each.is_deletion else each.full_key
        parts.append(f"{short.get(key, key.rpartition('.')[2])}={each.value_text or ''}")
    return folder_name(" ".join(parts))


def objective(record: Mapping[str, Any]) -> float | list[float | None] | None:
    """The value of `optimized_metric`, or of each where it is a list: what Hydra's sweepers optimise; None where it was
    not measured."""
    names = record["config"]["optimized_metric"]
    values = record["result"] | record["timing"]
    if isinstance(names, list):
        return [values[name] for name in names]
    return None if names is None else values[names]


def command_line() -> list[str]:
    """What was typed, the interpreter by its name alone."""
    return [Path(sys.orig_argv[0]).name, *sys.orig_argv[1:]]
