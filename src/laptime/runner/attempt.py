"""One attempt at a run. However it ends, run.json records it."""

import logging
import shlex
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from msgspec import UNSET, structs

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


def first_record(
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
    """Record the configuration, and where and as what it runs."""
    record.config = mask(config.as_dict())
    record.run_dir, record.experiment_name = str(run_dir), experiment
    record.run_label = "" if sweep is None else sweep.label
    record.runs_at_once = 1 if sweep is None else sweep.runs_at_once


def resumed_from(config: Config, checkpoint: Path | None) -> Config:
    """The configuration that goes on from a checkpoint; None: there is none, it stays as it is."""
    if checkpoint is None:
        return config
    return replace(config, training=replace(config.training, checkpoint=str(checkpoint)))


def attempt_run(run: RunContext, attempt: int, work: Callable[[], RunRecord]) -> RunRecord:
    """Do the work, and record in run.json how it ended. What the first rank wrote there stays."""
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
        if isinstance(failure, SystemExit):  # of a class of the user's own; its code is not that of this command
            raise TrainingFailed(f"something called sys.exit({failure.code})") from failure
        raise
    finally:
        # Whatever else is pressed now: the record is finished first.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if hasattr(signal, "pthread_sigmask") else None
        record.end_attempt(status, error)
        try:
            record.write(run_dir)
        except OSError as unwritten:
            if status == "completed":
                raise
            log.error("%s can't be written (%s): it stays as it was", run_dir / records.RUN_FILE, unwritten)
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return record


def _masked(error: RunError, config: Config) -> RunError:
    """Without secrets: an error may quote what it was given."""
    secrets = secret_values(config.as_dict())
    texts = {name: value for name, value in structs.asdict(error).items() if isinstance(value, str)}
    return structs.replace(error, **{name: mask_text(text, secrets) for name, text in texts.items()})


def _log_failure(run: RunContext, failure: BaseException, error: RunError) -> None:
    if isinstance(failure, RunFailed):
        log.error("failed: %s", failure)
    elif error.traceback is not UNSET and not isinstance(failure, KeyboardInterrupt):
        log.error("failed: %s: %s", error.type, error.message)
    if isinstance(failure, Interrupted):
        on = "what was measured until now is kept"
        if not (run.run_dir / records.EPOCHS_FILE).exists():
            on += "; no epoch was completed"
        elif run.sweep is None:  # how to resume a sweep, its end says
            elsewhere = any(split(each).key == "hydra.run.dir" for each in run.record.command or [])
            checkpoint = shlex.quote(f"training.checkpoint={relative(run.run_dir)}")
            also = " and another hydra.run.dir" if elsewhere else ""
            on += f"; the same command with {checkpoint}{also} goes on from the last whole epoch"
        log.warning("%s: %s", failure, on)


def _read_back(run_dir: Path, record: RunRecord) -> RunRecord:
    """What the first rank has written since; what was known before where that can't be read."""
    try:
        return RunRecord.read(run_dir)
    except (OSError, ValueError):
        return record
