"""Start Hydra's callbacks, sweeper and launcher with configurations that are composed and checked already.

`hydra.main` always composes again, and Hydra 1.3 has no public function that doesn't (not reported). So this module
uses `hydra._internal`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra._internal.utils import run_and_report
from hydra.core.plugins import Plugins
from hydra.core.utils import configure_log, run_job
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from laptime.config.job_composer import JobComposer
from laptime.config.overrides import parse
from laptime.config.quoting import as_text
from laptime.errors import UserError
from laptime.record.files import SWEEP_FILE, write_atomically
from laptime.text import format_os_error

_BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


class _JobLoader:
    """Hydra's configuration loader, but jobs that differ only in numbers are composed once, as for their check."""

    def __init__(self, hydra: Hydra, config_name: str) -> None:
        self._loader = hydra.config_loader
        self._composer = JobComposer(hydra, config_name)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Return what Hydra's method of this name returns."""
        try:
            cfg = self._composer.compose([*master_config.hydra.overrides.hydra, *sweep_overrides]).composed()
        except UserError:  # a file has changed since the check; Hydra's error says so to the caller
            return self._loader.load_sweep_config(master_config, sweep_overrides)
        OmegaConf.copy_cache(from_config=master_config, to_config=cfg)
        return cfg

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def run_once(hydra: Hydra, composed: DictConfig, run_dir: Path, task: TaskFunction) -> Any:
    """Run a task like `Hydra.run`, but with a configuration that is composed and checked already.

    Args:
        run_dir: the absolute path of the run directory.
        task: is called with the configuration; its value is returned.
    """
    with read_write(composed), open_dict(composed):
        composed.hydra.mode = RunMode.RUN
        composed.hydra.run.dir = str(run_dir)
        composed.hydra.overrides.hydra.append(f"hydra.run.dir={as_text(str(run_dir))}")
    OmegaConf.set_readonly(composed.hydra, False)
    configure_log(composed.hydra.hydra_logging, composed.hydra.verbose)
    callbacks = Callbacks(composed)
    callbacks.on_run_start(config=composed, config_name=composed.hydra.job.config_name)
    result = run_job(
        task_function=task, config=composed, job_dir_key="hydra.run.dir", job_subdir_key=None,
        hydra_context=HydraContext(config_loader=hydra.config_loader, callbacks=callbacks),
    )  # fmt: skip
    callbacks.on_run_end(config=composed, config_name=composed.hydra.job.config_name, job_return=result)
    return result.return_value


def sweep_config(hydra: Hydra, cli_overrides: Sequence[str], composed: DictConfig, sweep_dir: Path) -> DictConfig:
    """Return the configuration of a whole sweep, made from that of its first run.

    Args:
        cli_overrides: the overrides of the sweep, with several values per key.
        composed: the configuration of the first run.
        sweep_dir: the absolute path of the sweep directory.
    """
    cfg = composed.copy()
    with read_write(cfg), open_dict(cfg):
        cfg.hydra.mode = RunMode.MULTIRUN
        cfg.hydra.sweep.dir = str(sweep_dir)
        cfg.hydra.overrides.hydra.append(f"hydra.sweep.dir={as_text(str(sweep_dir))}")
        cfg.hydra.overrides.task = [override for override in cli_overrides if not parse(override).is_hydra_key]
    OmegaConf.set_readonly(cfg.hydra, False)
    return cfg


def run_sweep(hydra: Hydra, cfg: DictConfig, task: TaskFunction) -> None:
    """Run a sweep like `Hydra.multirun`, but with a configuration that is composed and checked already.

    Args:
        cfg: the result of `sweep_config`.
        task: is called for each run.

    Raises:
        SystemExit: a callback, the sweeper or the launcher failed; exit code 1. Hydra has printed the error.
    """
    sweep_dir = Path(cfg.hydra.sweep.dir)
    try:
        sweep_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(sweep_dir / SWEEP_FILE, OmegaConf.to_yaml(cfg).encode())
    except OSError as error:
        print(f"error: {format_os_error(error)}", file=sys.stderr)
        sys.exit(1)

    def sweep() -> None:
        configure_log(cfg.hydra.hydra_logging, cfg.hydra.verbose)
        callbacks = Callbacks(cfg)
        callbacks.on_multirun_start(config=cfg, config_name=cfg.hydra.job.config_name)
        loader: Any = hydra.config_loader
        if cfg.hydra.launcher._target_ == _BASIC_LAUNCHER:  # others may send it to other processes
            loader = _JobLoader(hydra, cfg.hydra.job.config_name)
        context = HydraContext(config_loader=loader, callbacks=callbacks)
        sweeper = Plugins.instance().instantiate_sweeper(hydra_context=context, task_function=task, config=cfg)
        sweeper.sweep(arguments=list(cfg.hydra.overrides.task))
        callbacks.on_multirun_end(config=cfg, config_name=cfg.hydra.job.config_name)

    run_and_report(sweep)
