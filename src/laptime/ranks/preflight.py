"""What must hold around a command before it starts: its environment variables, its launcher, Hydra's own settings.

Each of these would train something else than the configuration says, without an error.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from laptime.errors import UserError
from laptime.ranks import torchrun

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Lightning takes each argument of its Trainer that Laptime doesn't pass from a variable of this prefix.
_TRAINER_PREFIX = "PL_TRAINER_"

# Variables in which a launcher says how many processes of this command it has started, and the launcher's name.
# Numbers of slots (LSB_DJOB_NUMPROC, PBS_NP, NSLOTS, SLURM_NTASKS) are no numbers of processes.
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
# Set by hand, or by a launcher that isn't torchrun. WORLD_SIZE alone says nothing: a shell may have kept it.
_BY_HAND = ("WORLD_SIZE", ("RANK", "LOCAL_RANK"))

# With the value 1 they switch torch.compile off: torch returns the network as it is, without a word.
_NO_COMPILING = ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE")

# Keys of submitit's launchers, and options of sbatch and srun, that ask for several processes per run.
_TASKS = ("nodes", "tasks_per_node", "ntasks", "ntasks_per_node", "ntasks_per_gpu", "ntasks_per_core",
          "ntasks_per_socket", "n", "N")  # fmt: skip


def check(composed: "DictConfig") -> None:
    """Check the environment as Hydra will set it for a run, and Hydra's launcher.

    Args:
        composed: the configuration, Hydra's own part (`hydra`) included.

    Raises:
        UserError: names the variable or the key.
    """
    from omegaconf import OmegaConf

    hydra: Any = OmegaConf.to_container(composed.hydra, resolve=False)
    job = hydra.get("job") or {}
    for name in job.get("env_copy") or []:
        if name not in os.environ:
            raise UserError(
                f"hydra.job.env_copy={name}: this variable is not set. Set it in the shell, or leave it out."
            )
    check_environment()
    own = {str(name): str(value) for name, value in (job.get("env_set") or {}).items()}
    try:
        check_environment(own)
    except UserError as error:
        raise UserError(f"hydra.job.env_set: {error}") from error
    _require_one_process_per_run(hydra.get("launcher") or {})
    if OmegaConf.select(composed, "training.compile", throw_on_resolution_failure=False):
        require_compiling("training.compile", {**os.environ, **own})


def require_compiling(key: str, environment: Mapping[str, str]) -> None:
    """Refuse variables that switch torch.compile off.

    Args:
        key: what asked for it.

    Raises:
        UserError: names key and variable.
    """
    for name in _NO_COMPILING:
        if environment.get(name) == "1":
            raise UserError(f"{key}=true: {name}=1 switches torch.compile off. Unset it, or use {key}=false.")


def check_environment(environment: Mapping[str, str] | None = None) -> None:
    """Refuse variables that change the training behind the configuration's back, and other launchers' processes.

    Args:
        environment: variables; None: this process's own.

    Raises:
        UserError: names the variable.
    """
    environment = os.environ if environment is None else environment
    for name in sorted(environment):
        if name.startswith(_TRAINER_PREFIX):
            raise UserError(
                f"{name}={environment[name]}: Lightning would change the Trainer by it, and no record would say so. "
                f"Unset it: unset {name}."
            )
    if torchrun.is_joined():
        return
    for name, launcher in _launchers(environment):
        number = environment[name]
        if number.isdecimal() and int(number) > 1:
            raise UserError(
                f"{name}={number}: {launcher} has started {number} processes of this command, and each would be a run "
                "of its own. Start one process with strategy.world_size, or one torchrun per node on several."
            )


def _launchers(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Which of the variables are set, each with the launcher's name."""
    yield from ((name, launcher) for name, launcher in _NUM_PROCESSES.items() if name in environment)
    size, numbers = _BY_HAND
    if size in environment and any(name in environment for name in numbers):
        yield size, "something other than torchrun"


def _require_one_process_per_run(launcher: Mapping[str, Any]) -> None:
    """Refuse a launcher of Hydra's that would start one run in several processes."""
    asked = {f"hydra.launcher.{key}": launcher.get(key) for key in ("nodes", "tasks_per_node")}
    further = launcher.get("additional_parameters") or {}
    asked |= {f"hydra.launcher.additional_parameters.{key}": further[key] for key in further if _asks_for_tasks(key)}
    options = launcher.get("srun_args") or []
    asked |= dict(_options("hydra.launcher.srun_args", options))
    for key, value in asked.items():
        if value is not None and not re.fullmatch(r"0*1(-0*1)?", str(value)):
            raise UserError(
                f"{key}={value}: each of these processes would be a run of its own. Leave it out; "
                "strategy.world_size starts the ranks of a run on one node, torchrun on several."
            )


def _asks_for_tasks(option: Any) -> bool:
    return str(option).lstrip("-").replace("-", "_") in _TASKS


def _options(key: str, options: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """Options of srun that ask for tasks, with their values: `--ntasks=2`, `--ntasks 2`, `-n2`, `-n 2`."""
    words = " ".join(map(str, options)).split()
    for word, following in zip(words, [*words[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if not word.startswith("--") and len(word) > 2 and not equals:
            name, value = word[:2], word[2:]
        if word.startswith("-") and _asks_for_tasks(name):
            yield f"{key}.{name}", value or following
