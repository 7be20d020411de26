"""One run, from its composed configuration to its record and its table."""

import hashlib
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import TYPE_CHECKING

from laptime.config import (
    security,  # early: what is trusted by the environment is read before a configuration can set it
)
from laptime.errors import UserError
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
    typed: Sequence[str],
    sweep: "SweepContext | None" = None,
    resume: bool = False,
    tag: str = "",
    checked: bytes | None = None,
    experiment: str | None = None,
) -> "RunRecord":
    """Train and measure as a composed configuration says, and print what came of it.

    Args:
        cfg: without Hydra's own part.
        run_dir: absolute; exists.
        command: as typed.
        started: `time.time()` when the run began.
        typed: the overrides of the command line, alone.
        sweep: that it belongs to; None: a run by itself.
        resume: with what `run_dir` holds of the same run, from its last checkpoint.
        tag: of its lines on the terminal, where several runs write there.
        checked: `snapshot` of the configuration that was checked before; None: it is not known beforehand.
        experiment: the option of the group `experiment`; None: none was chosen.

    Returns:
        The record.

    Raises:
        UserError: it is not the configuration that was checked.
    """
    from laptime.config.compose import resolve
    from laptime.config.identity import changed_since
    from laptime.config.run_values import known_run
    from laptime.ranks import torchrun
    from laptime.record.masking import secret_values
    from laptime.runner.launch import launch
    from laptime.runner.table import print_results
    from laptime.terminal import ignore_broken_pipe, logging_to

    if checked is not None and (changed := changed_since(checked, resolve(cfg))):
        raise UserError(
            f"{', '.join(changed)}: another value than when the configuration was checked: one of its files or a "
            "variable has changed since, or a resolver gives another value each time. Give each key one value."
        )
    _name_paths_for(cfg)
    rank = torchrun.rank() if torchrun.is_joined() else 0
    with known_run(run_dir, "" if sweep is None else sweep.label, experiment):
        config = resolve(cfg)
    security.check(config, typed)  # once more: in the course of a long sweep its files may have changed
    with logging_to(run_dir, rank, secrets=secret_values(config.as_dict()), tag=tag):
        record = launch(config, run_dir, command, started, sweep, resume, experiment)
    if rank == 0:
        with ignore_broken_pipe():
            print_results(record, run_dir)
    return record


def _name_paths_for(cfg: "DictConfig") -> None:
    """Make relative paths absolute that would mean something else in the folder that Hydra has changed to
    (`hydra.job.chdir`).

    Raises:
        UserError: `training.checkpoint` names none.
    """
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():  # another rank of torchrun's, or no run of Hydra's
        return
    typed_in = Path(HydraConfig.get().runtime.cwd)
    if not typed_in.is_dir() or Path.cwd() == typed_in:
        return
    from laptime.training.checkpoints import find

    with chdir(typed_in):
        if cfg.dataset.get("root") is not None:
            cfg.dataset.root = str(expanded("dataset.root", cfg.dataset.root).absolute())
        if cfg.training.checkpoint is not None:
            cfg.training.checkpoint = str(find(cfg.training.checkpoint).absolute())


# A file system takes names of 255 bytes, some that encrypt take 143.
_MOST_BYTES = 140


def folder_name(label: str) -> str:
    """A label as the name of a folder; one that is too long is cut, and ends in a hash that tells it from others."""
    name = escape_control_chars(label).replace("/", "_").replace("\\", "_")
    if len(name.encode()) <= _MOST_BYTES:
        return name
    end = f"… {hashlib.sha256(label.encode(errors='surrogatepass')).hexdigest()[:8]}"
    return name.encode()[: _MOST_BYTES - len(end.encode())].decode(errors="ignore") + end
