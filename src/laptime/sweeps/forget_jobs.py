"""A Hydra callback that saves memory: Hydra keeps the configurations of all jobs until the sweep ends."""

from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class ForgetJobs(Callback):
    """Drops a job's two configurations. They are saved in its directory, and sweepers use only its status and value.

    It does so when the next job starts, because other callbacks may use them when the job ends.
    """

    def __init__(self) -> None:
        self._ended: JobReturn | None = None

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        self._ended = job_return

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if self._ended is not None:
            self._ended.cfg = self._ended.hydra_cfg = None
