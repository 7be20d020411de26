"""One attempt at a run. However it ends, run.json records it."""

import logging
import shlex
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from laptime.errors import Interrupted, RankFailed, TrainingFailed
from laptime.machine.device import cpu_name, usable_cores
from laptime.machine.environment import environment, git_state
from laptime.ranks.stopping import SIGNALS
from laptime.record import files as records
from laptime.record.heartbeat import beating
from laptime.record.masking import mask, mask_command, mask_text, secret_values
from laptime.record.override_text import split
from laptime.runner.rank_process import describe
from laptime.terminal import relative

log = logging.getLogger(__name__)


def first_record(config: Mapping[str, Any], run_dir: Path, command: Sequence[str], start: float) -> dict[str, Any]:
    record = records.new_record()
    record["started_at"] = records.timestamp(start)
    record["config"] = mask(config)
    record["seed"] = config["seed"]
    record["command"] = mask_command(command, secret_values(config))
    record["environment"] = environment(cpu_name(), usable_cores(), config)
    record["git"] = git_state(Path(__file__).parent)
    records.write_record(run_dir, record)
    return record


def resuming(config: Mapping[str, Any], checkpoint: Path | None) -> Mapping[str, Any]:
    """The configuration that goes on from a checkpoint; None: there is none, it stays as it is."""
    if checkpoint is None:
        return config
    return {**config, "training": {**config["training"], "checkpoint": str(checkpoint)}}


def attempt_run(
    config: Mapping[str, Any],
    run_dir: Path,
    record: dict[str, Any],
    attempt: int,
    work: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """Do the work, and record in run.json how it ended. What the first rank wrote there stays."""
    records.start_attempt(record, attempt)
    records.write_record(run_dir, record)
    status: str = "failed"
    error: dict[str, Any] | None = None
    try:
        with beating(run_dir):
            record = work()
        status = "completed"
    except BaseException as failure:
        error = describe(failure)
        if isinstance(failure, Interrupted | KeyboardInterrupt):
            status = "interrupted"
        if isinstance(failure, RankFailed):
            error = failure.error
        secrets = secret_values(config)  # an error may quote what it was given
        error = {key: mask_text(value, secrets) if isinstance(value, str) else value for key, value in error.items()}
        if isinstance(failure, TrainingFailed | RankFailed):
            log.error("failed: %s", failure)
        elif "traceback" in error and not isinstance(failure, KeyboardInterrupt):
            log.error("failed: %s: %s", error["type"], error["message"])
        if isinstance(failure, Interrupted):
            on = "what was measured until now is kept"
            if not (run_dir / records.EPOCHS_FILE).exists():
                on += "; no epoch was completed"
            elif not config["run_label"]:  # how a sweep goes on, its end says
                elsewhere = any(split(each).key == "hydra.run.dir" for each in record["command"])
                checkpoint = shlex.quote(f"training.checkpoint={relative(run_dir)}")
                also = " and another hydra.run.dir" if elsewhere else ""
                on += f"; the same command with {checkpoint}{also} goes on from the last whole epoch"
            log.warning("%s: %s", failure, on)
        record = _read_back(run_dir, record)
        if isinstance(failure, SystemExit):  # of a class of the user's own; its code is not that of this command
            raise TrainingFailed(f"something called sys.exit({failure.code})") from failure
        raise
    finally:
        # Whatever else is pressed now: the record is finished first.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS) if hasattr(signal, "pthread_sigmask") else None
        records.end_attempt(record, status, error)
        try:
            records.write_record(run_dir, record)
        except OSError as unwritten:
            if status == "completed":
                raise
            log.error("%s can't be written (%s): it stays as it was", run_dir / records.RUN_FILE, unwritten)
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return record


def _read_back(run_dir: Path, record: dict[str, Any]) -> dict[str, Any]:
    """What the first rank has written since; what was known before where that can't be read."""
    try:
        return records.read_record(run_dir)
    except (OSError, ValueError):
        return record
