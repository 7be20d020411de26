"""The SLURM job that this process runs in."""

import os
from collections.abc import Mapping


def allocated_cores(environment: Mapping[str, str] = os.environ) -> int | None:
    """Return the number of cores of this machine that SLURM allocated to the job; None: no SLURM job, or not known.

    Not every cluster pins a job to its cores, so the affinity of a process may include all cores of the machine.
    """
    cores = environment.get("SLURM_CPUS_ON_NODE", "")
    return int(cores) if cores.isdecimal() and int(cores) > 0 else None
