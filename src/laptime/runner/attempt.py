"""Makes one attempt at a run, and always records in run.json how it ended."""

import logging
import shlex
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from msgspec import UNSET, structs

from laptime.command_line import program
from laptime.config.schema import Config
from laptime.errors import Interrupted, RunFailed, TrainingFailed
from laptime.machine.device import cpu_name, usable_cores
from laptime.machine.environment import environment, git_state
from laptime.ranks.failures import RankFailed, to_run_error
from laptime.ranks.stopping import SIGNALS
from laptime.record import files as records
from laptime.record.heartbeat import keep_heartbeat
from laptime.record.masking import mask, mask_command, mask_text, secret_values
from laptime.record.override_text import split
from laptime.record.run_record import RunRecord
from laptime.record.schema import RunError, Status
from laptime.runner.context import RunContext, SweepContext
from laptime.terminal import relative

log = logging.getLogger(__name__)


def start_record(
    config: Config,
    run_dir: Path,
    command: Sequence[str],
    start: float,
    sweep: SweepContext | None = None,
    experiment: str | None = None,
) -> RunRecord:
    """Write the first run.json of a run.

    Args:
        sweep: the sweep that the run belongs to; None: a single run.
        experiment: the option of the group `experiment`; None: none was chosen.
    """
    plain = config.as_dict()
    record = RunRecord(
        started_at=records.timestamp(start),
        seed=config.seed,
        command=mask_command(command, secret_values(plain)),
        environment=environment(cpu_name(), usable_cores(), plain),
        git=git_state(Path(__file__).parent),
    )
    describe_run(record, config, run_dir, sweep, experiment)
    record.write(run_dir)
    return record


def describe_run(
    record: RunRecord, config: Config, run_dir: Path, sweep: SweepContext | None, experiment: str | None
) -> None:
    """Fill in the values that identify the run: configuration, directory, experiment, and its place in a sweep."""
    record.config = mask(config.as_dict())
    record.run_dir, record.experiment_name = str(run_dir), experiment
    record.run_label = "" if sweep is None else sweep.label
    record.runs_at_once = 1 if sweep is None else sweep.runs_at_once


def resume_from(config: Config, checkpoint: Path | None) -> Config:
    """Return the configuration with `training.checkpoint` set to a checkpoint, or unchanged if there is none."""
    if checkpoint is None:
        return config
    return replace(config, training=replace(config.training, checkpoint=str(checkpoint)))


def attempt_run(run: RunContext, attempt: int, work: Callable[[], RunRecord]) -> RunRecord:
    """Do the work, and record in run.json how it ended. Keeps what the first rank has written there."""
    record, run_dir = run.record, run.run_dir
    record.start_attempt(attempt)
    record.write(run_dir)
    status: Status = "failed"
    error: RunError | None = None
    try:
        with keep_heartbeat(run_dir):
            record = work()
        status = "completed"
    except BaseException as failure:
        if isinstance(failure, Interrupted | KeyboardInterrupt):
            status = "interrupted"
        error = _masked(failure.error if isinstance(failure, RankFailed) else to_run_error(failure), run.config)
        _log_failure(run, failure, error)
        record = _read_back(run_dir, record)
        if isinstance(failure, SystemExit):  # from user code; its code must not become this command's exit code
            raise TrainingFailed(f"user code called sys.exit({failure.code})") from failure
        raise
    finally:
        # Further signals wait until the record is written.
        old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if hasattr(signal, "pthread_sigmask") else None
        record.end_attempt(status, error)
        try:
            record.write(run_dir)
        except OSError as write_error:
            if status == "completed":
                raise
            log.error("can't write %s (%s): its status may be out of date", run_dir / records.RUN_FILE, write_error)
        if old_mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
    return record


def _masked(error: RunError, config: Config) -> RunError:
    """Mask secrets in an error, because its message may quote configuration values."""
    secrets = secret_values(config.as_dict())
    texts = {name: value for name, value in structs.asdict(error).items() if isinstance(value, str)}
    return structs.replace(error, **{name: mask_text(text, secrets) for name, text in texts.items()})


def _log_failure(run: RunContext, failure: BaseException, error: RunError) -> None:
    if isinstance(failure, RunFailed):
        log.error("%s", failure)
    elif error.traceback is not UNSET and not isinstance(failure, KeyboardInterrupt):
        log.error("%s: %s", error.type, error.message)
    if isinstance(failure, Interrupted):
        folder, training = shlex.quote(relative(run.run_dir)), run.config.training
        hint = "the measurements so far are saved"
        num_done, lap = max((row.epoch + 1 for row in records.epoch_rows(run.run_dir)), default=0), training.lap_word
        if num_done == 0:
            hint = f"no {lap} was completed"
        elif run.sweep is not None:
            pass  # a sweep prints at its end how to resume it
        elif num_done == training.num_laps:
            hint += f"; all {lap}s are complete, only the test is missing: {program('evaluate')} run={folder}"
        else:
            names_dir = any(split(argument).key == "hydra.run.dir" for argument in run.record.command or [])
            checkpoint = f"training.checkpoint={folder}"
            other_dir = " and another hydra.run.dir" if names_dir else ""
            hint += f"; to resume after the last complete {lap}, repeat the command with {checkpoint}{other_dir}"
        log.warning("%s: %s", failure, hint)


def _read_back(run_dir: Path, record: RunRecord) -> RunRecord:
    """Return the record that the first rank has written, or the given record if that can't be read."""
    try:
        return RunRecord.read(run_dir)
    except (OSError, ValueError):
        return record
