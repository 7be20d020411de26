"""Checks environment variables, the launcher and Hydra's own settings before a command starts.

Each setting that is refused would silently train something other than the configuration says.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from laptime.errors import UserError
from laptime.ranks import torchrun

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Lightning reads Trainer arguments that Laptime doesn't pass from variables with this prefix.
_TRAINER_PREFIX = "PL_TRAINER_"

# Variables in which launchers say how many processes of this command they have started, and the launchers' names.
# Variables with a number of slots (LSB_DJOB_NUMPROC, PBS_NP, NSLOTS, SLURM_NTASKS) do not say that.
_NUM_PROCESSES = {
    "SLURM_STEP_NUM_TASKS": "srun",
    "OMPI_COMM_WORLD_SIZE": "mpirun (Open MPI)",
    "PMI_SIZE": "mpiexec",
    "PMIX_SIZE": "mpiexec",
    "MV2_COMM_WORLD_SIZE": "mpirun (MVAPICH)",
    "MPI_LOCALNRANKS": "mpirun (Intel MPI)",
    "PALS_NRANKS": "mpiexec (PALS)",
    "JSM_NAMESPACE_SIZE": "jsrun",
    "FLUX_JOB_SIZE": "flux run",
    "HOROVOD_SIZE": "horovodrun",
    "SUBMITIT_LOCAL_NTASKS": "submitit",
}
# Variables that users or launchers other than torchrun set. WORLD_SIZE alone may be left over in a shell.
_UNKNOWN_LAUNCHER = ("WORLD_SIZE", ("RANK", "LOCAL_RANK"))

# The value 1 switches torch.compile off. torch then silently returns the network uncompiled.
_DISABLE_COMPILE = ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE")

# Keys of submitit's launchers, and options of sbatch and srun, that request several processes per run.
_NUM_TASKS_OPTIONS = ("nodes", "tasks_per_node", "ntasks", "ntasks_per_node", "ntasks_per_gpu", "ntasks_per_core",
          "ntasks_per_socket", "n", "N")  # fmt: skip


def check(composed: "DictConfig") -> None:
    """Check the environment that Hydra will set for a run, and Hydra's launcher.

    Args:
        composed: the configuration, including Hydra's own part (`hydra`).

    Raises:
        UserError: a setting is refused; names the variable or the key.
    """
    from omegaconf import OmegaConf

    # Not all of Hydra's part, because a sweep may have thousands of jobs.
    job: Any = OmegaConf.to_container(composed.hydra.job, resolve=False)
    launcher: Any = OmegaConf.select(composed, "hydra.launcher") or {}
    if OmegaConf.is_config(launcher):
        launcher = OmegaConf.to_container(launcher, resolve=False)
    for name in job.get("env_copy") or []:
        if name not in os.environ:
            raise UserError(
                f"hydra.job.env_copy={name}: this environment variable is not set. Set it in the shell, or remove it "
                "from the list."
            )
    check_environment()
    job_variables = {str(name): str(value) for name, value in (job.get("env_set") or {}).items()}
    try:
        check_environment(job_variables)
    except UserError as error:
        raise UserError(f"hydra.job.env_set: {error}") from error
    _require_one_process_per_run(launcher)
    if OmegaConf.select(composed, "training.compile", throw_on_resolution_failure=False):
        require_compiling("training.compile", {**os.environ, **job_variables})


def require_compiling(key: str, environment: Mapping[str, str]) -> None:
    """Refuse variables that switch torch.compile off.

    Args:
        key: the configuration key that asks for compiling.

    Raises:
        UserError: such a variable is set; names the key and the variable.
    """
    for name in _DISABLE_COMPILE:
        if environment.get(name) == "1":
            raise UserError(f"{key}=true: {name}=1 switches torch.compile off. Unset it, or use {key}=false.")


def check_environment(environment: Mapping[str, str] | None = None) -> None:
    """Refuse variables that silently change the training, and commands that another launcher started several times.

    Args:
        environment: the variables; None: those of this process.

    Raises:
        UserError: a variable is refused; names it.
    """
    environment = os.environ if environment is None else environment
    for name in sorted(environment):
        if name.startswith(_TRAINER_PREFIX):
            raise UserError(
                f"{name}={environment[name]}: changes an argument of Lightning's Trainer, which run.json doesn't show. "
                f"Unset it: unset {name}."
            )
    if torchrun.is_joined():
        return
    for name, launcher in _launchers(environment):
        number = environment[name]
        if number.isdecimal() and int(number) > 1:
            raise UserError(
                f"{name}={number}: {launcher} started {number} processes of this command, and each would be a separate "
                "run. Start one process and set strategy.world_size, or use torchrun on several nodes."
            )


def _launchers(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the launcher variables that are set, each with the launcher's name."""
    yield from ((name, launcher) for name, launcher in _NUM_PROCESSES.items() if name in environment)
    size, rank_variables = _UNKNOWN_LAUNCHER
    if size in environment and any(name in environment for name in rank_variables):
        yield size, "something other than torchrun"


def _require_one_process_per_run(launcher: Mapping[str, Any]) -> None:
    """Refuse settings of Hydra's launcher that would start several processes of one run."""
    requested = {f"hydra.launcher.{key}": launcher.get(key) for key in ("nodes", "tasks_per_node")}
    extra = launcher.get("additional_parameters") or {}
    requested |= {f"hydra.launcher.additional_parameters.{key}": extra[key] for key in extra if _asks_for_tasks(key)}
    options = launcher.get("srun_args") or []
    requested |= dict(_options("hydra.launcher.srun_args", options))
    for key, value in requested.items():
        if value is not None and not re.fullmatch(r"0*1(-0*1)?", str(value)):
            raise UserError(
                f"{key}={value}: each of these processes would be a separate run. Remove this setting. "
                "To start the ranks of one run, set strategy.world_size (one node) or use torchrun (several nodes)."
            )


def _asks_for_tasks(option: Any) -> bool:
    return str(option).lstrip("-").replace("-", "_") in _NUM_TASKS_OPTIONS


def _options(key: str, options: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Yield srun options that set the number of tasks, with their values, from `--ntasks=2`, `--ntasks 2` or `-n2`."""
    words = " ".join(map(str, options)).split()
    for word, following in zip(words, [*words[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if not word.startswith("--") and len(word) > 2 and not equals:
            name, value = word[:2], word[2:]
        if word.startswith("-") and _asks_for_tasks(name):
            yield f"{key}.{name}", value or following
