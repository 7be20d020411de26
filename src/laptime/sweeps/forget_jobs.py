"""A Hydra callback: what Hydra keeps of every job of a sweep until its end is let go once the next job starts."""

from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class ForgetJobs(Callback):
    """Drops a job's two configurations, which lie in its directory as files; sweepers use its status and value alone.

    Not at its end but when the next one starts: other callbacks may want them.
    """

    def __init__(self) -> None:
        self._ended: JobReturn | None = None

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        self._ended = job_return

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if self._ended is not None:
            self._ended.cfg = self._ended.hydra_cfg = None
