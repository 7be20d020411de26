"""MLflow tracking: parameters, metrics by epoch, and the status of each run."""

import os
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from laptime.errors import UserError, first_line
from laptime.extras import require
from laptime.loggers.tracker import Run, Tracker

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

# Importing MLflow takes seconds, so it is only imported where it is used.
require("mlflow", "sqlalchemy", "alembic")

_STATUS = {"completed": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
# MLflow's limits for one request and for one value.
_MAX_PARAMS, _MAX_METRICS, _MAX_PARAM_LENGTH = 100, 1000, 500
_RUN_TAG = "laptime.run"


class MLflow(Tracker):
    """Logs to an MLflow store.

    Args:
        tracking_uri: a database (`sqlite:///mlflow.db`) or a server (`http://host:5000`).
        experiment_name: the experiment that contains the runs.
    """

    stays_open_after_crash = True

    def __init__(self, tracking_uri: str, experiment_name: str) -> None:
        super().__init__()
        self.tracking_uri = tracking_uri
        self.experiment_name = experiment_name
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._is_new = True

    @property
    def experiment(self) -> "MlflowClient | None":
        """MLflow's client; None: `begin` was not called yet."""
        return self._client

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return self._run_id

    def begin(self, run: Run) -> None:
        self.run = run
        client = _client(self.tracking_uri)
        experiment_id = _experiment(client, self.experiment_name)
        runs = client.search_runs([experiment_id], f"tags.`{_RUN_TAG}` = '{run.id}'", max_results=1)
        self._is_new = not runs
        if runs:  # of an earlier attempt
            self._run_id = runs[0].info.run_id
            client.update_run(self._run_id, status="RUNNING")
        else:
            tags = {_RUN_TAG: run.id, "laptime.run_dir": str(run.run_dir)}
            tags |= {"laptime.sweep": run.sweep} if run.sweep is not None else {}
            tags |= {"mlflow.source.git.commit": run.commit} if run.commit is not None else {}
            self._run_id = client.create_run(experiment_id, tags=tags, run_name=run.name).info.run_id
        self._client = client

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Log them once per run, because MLflow refuses to change them."""
        from mlflow.entities import Param

        if self._client is None or not self._is_new:
            return
        values = vars(params) if isinstance(params, Namespace) else params
        entities = [Param(key, str(value)[:_MAX_PARAM_LENGTH]) for key, value in values.items()]
        for start in range(0, len(entities), _MAX_PARAMS):
            self._client.log_batch(self._run_id, params=entities[start : start + _MAX_PARAMS])

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        from mlflow.entities import Metric

        if self._client is None:
            return
        now_ms = int(time.time() * 1000)
        entities = [Metric(key, float(value), now_ms, step or 0) for key, value in metrics.items()]
        for start in range(0, len(entities), _MAX_METRICS):
            self._client.log_batch(self._run_id, metrics=entities[start : start + _MAX_METRICS])

    def end(self, status: str) -> None:
        if self._client is not None:
            self._client.set_terminated(self._run_id, _STATUS[status])


def _client(tracking_uri: str) -> "MlflowClient":
    # Set before MLflow is imported. Otherwise it sends telemetry, logs the creation of its tables, and retries for
    # minutes if a server does not answer.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        if not tracking_uri.startswith("sqlite:///"):
            return MlflowClient(tracking_uri)
        path = Path(tracking_uri.removeprefix("sqlite:///"))
        if not path.parent.is_dir():
            raise UserError(f"logger.mlflow.tracking_uri={tracking_uri}: there is no folder {path.parent}.")
        with FileLock(
            path.with_name(f".{path.name}.lock")
        ):  # two processes that create the tables concurrently would both fail
            return MlflowClient(tracking_uri)
    except MlflowException as error:
        if "maintenance mode" in str(error):
            raise UserError(
                f"logger.mlflow.tracking_uri={tracking_uri}: MLflow no longer keeps runs in plain files. "
                "Use sqlite:///mlflow.db."
            ) from error
        raise UserError(f"logger.mlflow.tracking_uri={tracking_uri}: {first_line(error)}") from error


def _experiment(client: "MlflowClient", name: str) -> str:
    """Return the id of an experiment. Create it if it doesn't exist."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another run has created it meanwhile
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"logger.mlflow.experiment_name={name}: this experiment was deleted. Use another name, or restore it: "
            f"mlflow experiments restore --experiment-id {experiment.experiment_id}"
        )
    return str(experiment.experiment_id)
