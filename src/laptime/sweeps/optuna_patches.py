"""Patches of Optuna and hydra-optuna-sweeper 1.3, which end a search with a traceback if trials fail or if the search
can't start."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher

from laptime.errors import launcher_errors


class SearchRefused(BaseException):
    """A search can't start. A BaseException, because Hydra 1.3 prints the traceback of an Exception (not reported)."""


@contextmanager
def patched() -> Iterator[None]:
    """Patch both libraries within this context: any number of trials, including all, may fail.

    Raises:
        SearchRefused: the sweeper can't start with these settings.
    """
    try:
        from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper
        from optuna import logging as optuna_logging
        from optuna.samplers import GridSampler
    except ImportError:  # another search sweeper
        yield
        return
    after_trial, sweep = GridSampler.after_trial, OptunaSweeper.sweep

    def count_no_trials(*args: Any) -> None:
        """Replace the method that ends a grid. The sweeper counts the trials itself.

        The original calls Study.stop(), which Optuna only allows within Study.optimize().

        Seen with Optuna 2.10: https://github.com/optuna/optuna/issues/5141
        """

    # hydra-optuna-sweeper 1.3 asks for the best trial even if no trial is completed, and Hydra 1.3 prints the traceback
    # of a launcher's error. Not reported upstream.
    def sweep_without_best(self: Any, arguments: list[str]) -> None:
        launcher = type(self.sweeper.launcher)  # patch the class: launchers pickle themselves
        launch = launcher.launch
        if launcher is not BasicLauncher:
            launcher.launch = launcher_errors()(launch)
        try:
            sweep(self, arguments)
        except Exception as error:
            if not self.sweeper.job_idx:
                storage = f"hydra.sweeper.storage={self.sweeper.storage}: " if self.sweeper.storage else ""
                reason = str(error).partition("\n")[0] or type(error).__name__
                raise SearchRefused(f"{storage}Optuna's sweeper can't start: {reason}") from error
            if "No trials are completed yet" not in str(error):
                raise
        finally:
            launcher.launch = launch

    sweeper_log = logging.getLogger("hydra_plugins.hydra_optuna_sweeper")
    verbosity, level = optuna_logging.get_verbosity(), sweeper_log.level
    optuna_logging.set_verbosity(optuna_logging.WARNING)
    sweeper_log.setLevel(logging.CRITICAL)  # the sweep reports failed trials itself
    GridSampler.after_trial, OptunaSweeper.sweep = count_no_trials, sweep_without_best  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        GridSampler.after_trial, OptunaSweeper.sweep = after_trial, sweep  # type: ignore[method-assign]
        optuna_logging.set_verbosity(verbosity)
        sweeper_log.setLevel(level)
