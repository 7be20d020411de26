"""Starts the ranks of one run and sees to it that its record is complete, however it ends."""

import logging
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from laptime import record as records
from laptime.device import cpu_name, usable_cores
from laptime.environment import environment, git_state
from laptime.errors import Interrupted, TrainingFailed, UserError
from laptime.stopping import heeding_signals
from laptime.training import train

log = logging.getLogger(__name__)


def launch(
    config: Mapping[str, Any], run_dir: Path, command: Sequence[str], start: float | None = None
) -> dict[str, Any]:
    """Run one training job in this process.

    Args:
        config: resolved, plain values.
        run_dir: absolute; exists.
        command: as typed.
        start: `time.time()` when the run began; None: now.

    Returns:
        The record, as run.json holds it.

    Raises:
        UserError, TrainingFailed, Interrupted, or whatever went wrong, after run.json says so.
    """
    record = records.new_record()
    record["config"] = dict(config)
    record["seed"] = config["seed"]
    record["command"] = list(command)
    record["environment"] = environment(cpu_name(), usable_cores())
    record["git"] = git_state(Path(__file__).parent)
    records.update(record, "strategy", rank_pids=[os.getpid()])
    records.write_record(run_dir, record)
    status = "failed"
    error: dict[str, Any] | None = None
    try:
        with heeding_signals() as stop:
            train(config, run_dir, record, stop, time.time() if start is None else start)
        status = "completed"
    except Interrupted as interruption:
        status, error = "interrupted", {"type": "Interrupted", "message": str(interruption)}
        log.warning("%s: what was measured until now is kept in %s", interruption, run_dir)
        raise
    except KeyboardInterrupt:
        status, error = "interrupted", {"type": "KeyboardInterrupt", "message": "stopped by the user"}
        raise
    except (UserError, TrainingFailed) as failure:
        error = {"type": type(failure).__name__, "message": str(failure)}
        if isinstance(failure, TrainingFailed):
            error |= {"epoch": failure.epoch, "step": failure.step}
        raise
    except BaseException as failure:
        error = {
            "type": type(failure).__name__,
            "message": str(failure),
            "traceback": traceback.format_exc(),
        }
        log.error("the run failed: %s: %s", type(failure).__name__, failure)
        raise
    finally:
        record["status"] = status
        record["error"] = error
        record["ended_at"] = records.now()
        record["attempts"] = [
            {"attempt": 0, "started_at": record["started_at"], "ended_at": record["ended_at"], "status": status}
        ]
        records.write_record(run_dir, record)
    return record
