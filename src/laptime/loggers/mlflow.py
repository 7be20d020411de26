"""MLflow's tracking: parameters, metrics by epoch, and how each run ended."""

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

# Loading MLflow takes seconds: only where it is used, not where a configuration is checked.
require("mlflow", "sqlalchemy", "alembic")

_STATUS = {"completed": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
# What MLflow takes at once, and of one value.
_MOST_PARAMS, _MOST_METRICS, _LONGEST_PARAM = 100, 1000, 500
_RUN_TAG = "laptime.run"


class MLflow(Tracker):
    """Logs to an MLflow store.

    Args:
        tracking_uri: a database (`sqlite:///mlflow.db`) or a server (`http://host:5000`).
        experiment_name: below which the runs stand.
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
        """MLflow's client; None before the run has begun."""
        return self._client

    @property
    def run_id(self) -> str:
        """MLflow's own name of the run."""
        return self._run_id

    def begin(self, run: Run) -> None:
        self.run = run
        client = _client(self.tracking_uri)
        experiment_id = _experiment(client, self.experiment_name)
        found = client.search_runs([experiment_id], f"tags.`{_RUN_TAG}` = '{run.id}'", max_results=1)
        self._is_new = not found
        if found:  # of an earlier attempt
            self._run_id = found[0].info.run_id
            client.update_run(self._run_id, status="RUNNING")
        else:
            tags = {_RUN_TAG: run.id, "laptime.record.directory": str(run.run_dir)}
            tags |= {"laptime.sweeps.sweep": run.sweep} if run.sweep is not None else {}
            tags |= {"mlflow.source.git.commit": run.commit} if run.commit is not None else {}
            self._run_id = client.create_run(experiment_id, tags=tags, run_name=run.name).info.run_id
        self._client = client

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Once per run: MLflow refuses to change them."""
        from mlflow.entities import Param

        if self._client is None or not self._is_new:
            return
        values = vars(params) if isinstance(params, Namespace) else params
        entities = [Param(key, str(value)[:_LONGEST_PARAM]) for key, value in values.items()]
        for start in range(0, len(entities), _MOST_PARAMS):
            self._client.log_batch(self._run_id, params=entities[start : start + _MOST_PARAMS])

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        from mlflow.entities import Metric

        if self._client is None:
            return
        now_ms = int(time.time() * 1000)
        entities = [Metric(key, float(value), now_ms, step or 0) for key, value in metrics.items()]
        for start in range(0, len(entities), _MOST_METRICS):
            self._client.log_batch(self._run_id, metrics=entities[start : start + _MOST_METRICS])

    def end(self, status: str) -> None:
        if self._client is not None:
            self._client.set_terminated(self._run_id, _STATUS[status])


def _client(tracking_uri: str) -> "MlflowClient":
    # Before MLflow is loaded. It would tell its makers what it is used for, write of tables that it makes, and ask a
    # server that does not answer for minutes.
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
        with FileLock(path.with_name(f".{path.name}.lock")):  # two processes that make its tables at once both fail
            return MlflowClient(tracking_uri)
    except MlflowException as error:
        if "maintenance mode" in str(error):
            raise UserError(
                f"logger.mlflow.tracking_uri={tracking_uri}: MLflow no longer keeps runs in plain files. "
                "Use sqlite:///mlflow.db."
            ) from error
        raise UserError(f"logger.mlflow.tracking_uri={tracking_uri}: {first_line(error)}") from error


def _experiment(client: "MlflowClient", name: str) -> str:
    """The id of an experiment, which is made where there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another run was faster
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"logger.mlflow.experiment_name={name}: was deleted. Use another name, or restore it: "
            f"mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return str(found.experiment_id)
