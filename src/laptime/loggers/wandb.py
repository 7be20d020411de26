"""Weights & Biases: offline by default, with files in the run directory that can be uploaded later."""

import os
from argparse import Namespace
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from laptime.extras import require
from laptime.loggers.tracker import Run, Tracker

if TYPE_CHECKING:
    import wandb

# Importing it takes seconds, so it is only imported where it is used.
require("wandb")

_EXIT_CODES = {"completed": 0, "failed": 1, "interrupted": 130}


class WandB(Tracker):
    """Logs values to Weights & Biases. Output, code, command line and machine statistics are not logged: they may
    contain secrets or disturb the measurement.

    Args:
        project: the project that contains the runs.
        entity: the user or team that owns the project; None: W&B's default.
        mode: `offline` writes to wandb/ in the run directory and uploads nothing; `online` also uploads to the server.
    """

    def __init__(self, project: str, entity: str | None, mode: Literal["offline", "online", "disabled"]) -> None:
        super().__init__()
        self.project = project
        self.entity = entity
        self.mode = mode
        self._run: wandb.Run | None = None
        self._owns_service = False

    @property
    def experiment(self) -> "wandb.Run | None":
        """W&B's run; None: `begin` was not called yet."""
        return self._run

    def begin(self, run: Run) -> None:
        self.run = run
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it would send its own errors to W&B
        import wandb

        self._owns_service = "WANDB_SERVICE" not in os.environ
        settings = wandb.Settings(
            silent=True,
            console="off",
            disable_code=True,
            disable_git=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            dir=str(run.run_dir),
            id=run.id,
            name=run.name,
            group=run.sweep,
            mode=self.mode,
            resume="allow" if self.mode == "online" else None,
            settings=settings,
        )
        self._run.define_metric("*", step_metric="epoch")

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        if self._run is not None:
            values = vars(params) if isinstance(params, Namespace) else params
            self._run.config.update(values, allow_val_change=True)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if self._run is not None:
            self._run.log({"epoch": step or 0, **metrics})

    def end(self, status: str) -> None:
        if self._run is not None:
            self._run.finish(exit_code=_EXIT_CODES[status])

    def release(self) -> None:
        """End W&B's service process, so that the next run of a sweep starts its own. It may have died already."""
        if self._owns_service:
            import wandb

            with suppress(Exception, SystemExit):
                wandb.teardown()
