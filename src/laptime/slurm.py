"""What SLURM says about the job that this process runs in."""

import os
from collections.abc import Mapping

from laptime.errors import UserError


def allocated_cores(environment: Mapping[str, str] = os.environ) -> int | None:
    """The cores of this machine that were allocated to the job; None: no SLURM, or it doesn't say.

    Not every cluster confines a job to them, so a process's affinity alone may name all of the machine's.
    """
    cores = environment.get("SLURM_CPUS_ON_NODE", "")
    return int(cores) if cores.isdecimal() and int(cores) > 0 else None


def require_one_task(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse to be one of several tasks that srun started from one command: each would be a run of its own.

    Raises:
        UserError: says what to start instead.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks != "1":
        raise UserError(
            f"srun has started {tasks} tasks of this command, and each would be a run of its own. Use srun --ntasks=1 "
            "with strategy.world_size on one node, or one torchrun per node (--ntasks-per-node=1) on several."
        )
