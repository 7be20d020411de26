"""Run the jobs of a sweep by Hydra's launcher: one after the other in this process, or concurrently in others."""

import sys
import time
import traceback
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from msgspec import structs

from laptime.command_line import typed_command
from laptime.config import vouching
from laptime.config.compose import experiment_of
from laptime.errors import Interrupted, LauncherFailed, RunFailed, UserError
from laptime.record.directory import RunDir, numbered_runs
from laptime.record.masking import mask_text
from laptime.record.plan import read_plan, write_plan
from laptime.record.run_record import RunRecord
from laptime.runner.job import folder_name, run_job
from laptime.sweeps import optuna_patches
from laptime.sweeps.core_slots import SweepCores
from laptime.sweeps.hydra_jobs import run_sweep
from laptime.sweeps.labels import drop_shared_keys, shared_overrides, sweep_label, swept
from laptime.sweeps.notify import notify
from laptime.sweeps.outcomes import OUTCOMES_DIR, Outcome, OutcomeStore
from laptime.sweeps.signals import forward_signals
from laptime.text import format_os_error

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra
    from omegaconf import DictConfig

    from laptime.sweeps.rerun_rules import Step


@dataclass
class Sweep:
    """A sweep and the outcomes of its runs.

    It is also the task function that Hydra calls for each job. Launchers pickle it to other processes.

    Attributes:
        path: the absolute path of the sweep directory.
        cli_overrides: the overrides of the command line.
        jobs: the overrides of every job; for a search, those of example jobs.
        num_jobs: number of jobs; for a search, the maximum.
        cores: how its runs divide the cores of the machine.
        command: the value of `sweep.notify`; None: no command is run.
        overrides_by_run: the overrides of all earlier and planned runs, by number.
        todo: the overrides of the runs to start now, by number.
        snapshots: the `snapshot` of each checked configuration, by number.
        steps: the action for each run of a resumed sweep, by number; empty: a new sweep.
        is_search: whether the sweeper chooses the jobs while it runs.
    """

    path: Path
    cli_overrides: Sequence[str]
    jobs: list[list[str]]
    num_jobs: int
    cores: SweepCores
    command: str | None = None
    overrides_by_run: dict[int, list[str]] = field(default_factory=dict)
    todo: Mapping[int, list[str]] = field(default_factory=dict)
    snapshots: Mapping[int, bytes] = field(default_factory=dict)
    steps: "Mapping[int, Step]" = field(default_factory=dict)
    is_search: bool = False
    _command_line: list[str] = field(default_factory=typed_command)
    _sys_path: list[str] = field(default_factory=lambda: list(sys.path))
    _vouching: vouching.State = field(default_factory=vouching.state)
    _outcomes: OutcomeStore = field(init=False)
    _shared: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self._outcomes = OutcomeStore(self.path, is_one_process=self.cores.slots is None)
        self._shared = shared_overrides(self.jobs)

    def run(self, hydra: "Hydra", settings: "DictConfig") -> int:
        """Let Hydra run the jobs. A failed one doesn't stop the others.

        Args:
            settings: the configuration of the whole sweep, from laptime.sweeps.hydra_jobs.sweep_config.

        Returns:
            The exit code.

        Raises:
            UserError: the sweeper can't start. No job has started.
        """
        from laptime.analysis.sweep_callback import report_sweep
        from laptime.sweeps.closing import print_summary

        is_resumed = len(self.overrides_by_run) > self.num_jobs
        planned = {number: self._swept(overrides) for number, overrides in self.todo.items()}
        write_plan(self.path, read_plan(self.path) | (planned or dict.fromkeys(range(self.num_jobs), "")), starts=True)
        exit_code = 0
        try:
            with (
                forward_signals(self._outcomes, runs_at_once=self.cores.slots is not None),
                optuna_patches.patched() if self.is_search else nullcontext(),
            ):
                run_sweep(hydra, settings, self)
        except optuna_patches.SearchRefused as refused:
            raise UserError(str(refused)) from refused
        except (SystemExit, LauncherFailed) as end:
            exit_code = end.code if isinstance(end, SystemExit) and isinstance(end.code, int) else 1
            if isinstance(end, LauncherFailed):
                print(f"error: {end}", file=sys.stderr)
            self._outcomes.end_records()
            if self._outcomes.all():  # Hydra doesn't call its callback in this case
                report_sweep(self.path)
        else:
            if self.is_search:  # a search may end before the maximum number of trials
                self.num_jobs = len(self._outcomes.all())
                write_plan(self.path, dict.fromkeys(range(self.num_jobs), ""))
        outcomes = self._outcomes.all()
        exit_code = max([exit_code, self._outcomes.stopped() or 0, *(outcome.exit_code for outcome in outcomes)])
        print_summary(self.path, outcomes, self.num_jobs, exit_code, self.command, is_resumed)
        self._outcomes.forget()
        return exit_code

    def __call__(self, cfg: "DictConfig") -> Any:
        """Run one job. Return the value that Hydra's sweepers optimize; None: it was not measured."""
        from hydra.core.hydra_config import HydraConfig

        job = HydraConfig.get()
        if self._outcomes.stopped() is not None:
            return None
        sys.path += [path for path in self._sys_path if path not in sys.path]
        vouching.restore(self._vouching)
        step = self.steps.get(job.job.num)
        overrides = list(job.overrides.task)
        if self.is_search:
            overrides = drop_shared_keys(overrides, self._shared)
        with self.cores.take(self.path / OUTCOMES_DIR) as context:
            if self._outcomes.stopped() is not None:  # stopped while this job waited for cores
                return None
            run = self._announce(job.job.num, overrides)
            try:
                label = sweep_label(overrides, self._shared)
                if step is None or step.run is None:
                    path, resume = RunDir(job.runtime.output_dir, may_move=False).path, False
                else:
                    path, resume = step.run.path, step.resume
                    if resume:
                        label = step.run.label
                    else:
                        from laptime.sweeps.earlier import move_to_earlier

                        move_to_earlier(path)
                tag = f"[run {job.job.num}] " if self.cores.slots is not None else ""
                context = replace(context, label=folder_name(mask_text(label)))
                record = run_job(
                    cfg, path, self._command_line, time.time(), self.cli_overrides, context, resume, tag,
                    self.snapshots.get(job.job.num), experiment_of(cast("DictConfig", HydraConfig.instance().cfg)),
                )  # fmt: skip
                self._outcomes.note(Outcome(run, "completed"))
                return objective(record, (record.config or {})["optimized_metric"])
            except Interrupted as interruption:
                self._outcomes.note(Outcome(run, "interrupted", exit_code=interruption.exit_code))
                self._outcomes.stop(interruption.exit_code)
            except SystemExit as end:  # from `forward_signals`: a signal arrived before `run_job` handles signals
                if isinstance(end.code, int) and end.code > 128:
                    self._outcomes.note(Outcome(run, "interrupted", exit_code=end.code))
                raise
            except Exception as error:
                self._fail(run, error, cfg.sweep.on_failure, _secrets_of(cfg))
        return None

    def add_runs(self, jobs: Sequence[list[str]]) -> dict[int, list[str]]:
        """Number additional runs, and add them to the plan. Return their overrides by number."""
        first = max([*self.overrides_by_run, *read_plan(self.path), *numbered_runs(self.path)], default=-1) + 1
        added = dict(enumerate(jobs, start=first))
        self.overrides_by_run |= added
        write_plan(self.path, read_plan(self.path) | {number: self._swept(job) for number, job in added.items()})
        return added

    def record_failed_start(self, number: int, overrides: list[str], error: OSError, on_failure: str) -> None:
        """Note that a job failed because the launcher could not create its directory."""
        self._fail(self._announce(number, overrides), error, on_failure)

    def _announce(self, number: int, overrides: list[str]) -> str:
        swept = self._swept(overrides)
        print(f"\nrun {number} of the sweep: {swept}", file=sys.stderr)
        run = f"{number} ({swept})"
        self._outcomes.note(Outcome(run, "begun"))
        return run

    def _fail(self, run: str, error: Exception, on_failure: str, secrets: Collection[str] = ()) -> None:
        if isinstance(error, UserError):
            print(f"error: {mask_text(str(error), secrets)}", file=sys.stderr)
        elif isinstance(error, OSError):
            print(f"error: {format_os_error(error)}", file=sys.stderr)
        elif not isinstance(error, RunFailed):
            traceback.print_exception(error)
        message = mask_text(str(error), secrets)
        exit_code = getattr(error, "exit_code", 1)
        self._outcomes.note(Outcome(run, "failed", message, exit_code))
        notify(self.command, "run-failed", self.path, mask_text(f"run {run}: {message}", secrets))
        if on_failure == "stop":
            self._outcomes.stop(max([exit_code, *(outcome.exit_code for outcome in self._outcomes.all())]))

    def _swept(self, overrides: list[str]) -> str:
        return " ".join(swept(overrides, self._shared))


def _secrets_of(cfg: "DictConfig") -> Collection[str]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from laptime.record.masking import secret_values

    try:
        return secret_values(OmegaConf.to_container(cfg, resolve=True))
    except OmegaConfBaseException:
        return ()


def objective(record: RunRecord, names: str | Sequence[str] | None) -> float | list[float | None] | None:
    """Return the value of `optimized_metric` (a list, if it is a list), which Hydra's sweepers optimize.

    None means that it was not measured.
    """
    values: dict[str, float | None] = structs.asdict(record.result) | structs.asdict(record.timing)
    if names is None:
        return None
    return values[names] if isinstance(names, str) else [values[name] for name in names]
