"""Does one run, from its composed configuration to its record and its table."""

import hashlib
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING

from laptime.config import (
    security,  # early: it reads the environment's allow-list before a configuration can set the variable
)
from laptime.errors import UserError, ignore_broken_pipe
from laptime.record.directory import expanded
from laptime.text import escape_control_chars

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from laptime.record.run_record import RunRecord
    from laptime.runner.context import SweepContext


def run_job(
    cfg: "DictConfig",
    run_dir: Path,
    command: Sequence[str],
    started: float,
    cli_overrides: Sequence[str],
    sweep: "SweepContext | None" = None,
    resume: bool = False,
    tag: str = "",
    checked: bytes | None = None,
    experiment: str | None = None,
) -> "RunRecord":
    """Train and measure as a composed configuration says, and print the results.

    Args:
        cfg: the composed configuration without the node `hydra`.
        run_dir: the absolute path of the run directory, which exists.
        command: the command line that the user typed.
        started: `time.time()` when the run began.
        cli_overrides: the overrides of the command line only.
        sweep: the sweep that the run belongs to; None: a single run.
        resume: whether to resume this run from its last checkpoint in `run_dir`.
        tag: prefix of the run's lines on a terminal, if several runs write to it.
        checked: the `snapshot` of the configuration that was checked before; None: it was not checked before.
        experiment: the option of the group `experiment`; None: none was chosen.

    Raises:
        UserError: the configuration differs from the one that was checked.
    """
    from laptime.config.compose import resolve
    from laptime.config.identity import changed_since
    from laptime.config.run_values import known_run
    from laptime.ranks import torchrun
    from laptime.record.masking import secret_values
    from laptime.runner.launch import launch
    from laptime.runner.table import print_results
    from laptime.terminal import logging_to

    if checked is not None and (changed := changed_since(checked, resolve(cfg))):
        raise UserError(
            f"{', '.join(changed)}: has changed since the configuration was checked. A file or an environment variable "
            "has changed, or a resolver returns a new value each time. Set a fixed value."
        )
    _make_paths_absolute(cfg)
    rank = torchrun.rank() if torchrun.is_joined() else 0
    with known_run(run_dir, "" if sweep is None else sweep.label, experiment):
        config = resolve(cfg)
    security.check(config, cli_overrides)  # again, because files may change during a long sweep
    with logging_to(run_dir, rank, secrets=secret_values(config.as_dict()), tag=tag):
        record = launch(config, run_dir, command, started, sweep, resume, experiment)
    if rank == 0:
        with ignore_broken_pipe():
            print_results(record, run_dir)
    return record


def _make_paths_absolute(cfg: "DictConfig") -> None:
    """Make relative paths absolute if `hydra.job.chdir` has changed the working directory.

    Raises:
        UserError: `training.checkpoint` names no checkpoint.
    """
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():  # a rank of torchrun's, or a call from Python
        return
    command_dir = Path(HydraConfig.get().runtime.cwd)
    if not command_dir.is_dir() or Path.cwd() == command_dir:
        return
    from laptime.training.checkpoints import find

    with chdir(command_dir):
        if cfg.dataset.get("root") is not None:
            cfg.dataset.root = str(expanded("dataset.root", cfg.dataset.root).absolute())
        if cfg.training.checkpoint is not None:
            cfg.training.checkpoint = str(find(cfg.training.checkpoint).absolute())


# Most file systems limit a name to 255 bytes, and encrypted ones (e.g. eCryptfs) to 143.
_MAX_NAME_BYTES = 140


def folder_name(label: str) -> str:
    """Turn a label into the name of a folder. A label that is too long is cut and ends with its hash."""
    name = escape_control_chars(label).replace("/", "_").replace("\\", "_")
    if len(name.encode()) <= _MAX_NAME_BYTES:
        return name
    end = f"… {hashlib.sha256(label.encode(errors='surrogatepass')).hexdigest()[:8]}"
    return name.encode()[: _MAX_NAME_BYTES - len(end.encode())].decode(errors="ignore") + end
