"""What SLURM says about the job that this process runs in."""

import os
from collections.abc import Mapping


def allocated_cores(environment: Mapping[str, str] = os.environ) -> int | None:
    """The cores of this machine that were allocated to the job; None: no SLURM, or it doesn't say.

    Not every cluster confines a job to them, so a process's affinity alone may name all of the machine's.
    """
    cores = environment.get("SLURM_CPUS_ON_NODE", "")
    return int(cores) if cores.isdecimal() and int(cores) > 0 else None
