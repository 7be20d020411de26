"""Reads the files that Hydra and its Optuna sweeper write into the directories of runs and sweeps. Loads no Hydra."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from laptime.record.files import SWEEP_FILE
from laptime.record.renamed import override_by_new_name

# Hydra's folder in the directory of a run, unless hydra.output_subdir names another.
HYDRA_DIR = ".hydra"
_OVERRIDES_FILE = "overrides.yaml"
_BEST_FILE = "optimization_results.yaml"  # Optuna's sweeper
_UNREADABLE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, yaml.YAMLError)


class HydraFileError(Exception):
    """A file can't be read, or Hydra did not write it. The message is the type of the error."""


@dataclass(frozen=True)
class SweepFile:
    """multirun.yaml: the settings with which a sweep was started or last resumed.

    Attributes:
        overrides: the typed overrides with current key names, Hydra's own last.
        sweeper: the settings of `hydra.sweeper`.
        subdir: the names of the run directories (`hydra.sweep.subdir`), not interpolated.
        output_subdir: Hydra's folder in a run directory (`hydra.output_subdir`); None: Hydra writes none.
        config_name: the primary configuration (`--config-name`); None: not in the file.
        config_dir: the folder of `--config-dir`; None: not given.
        optimized_metric: the value of this key of Laptime's configuration.
        is_complete: whether the file has everything that Hydra writes.
    """

    overrides: tuple[str, ...]
    sweeper: Mapping[str, Any]
    subdir: str | None
    output_subdir: str | None
    config_name: str | None
    config_dir: str | None
    optimized_metric: Any
    is_complete: bool

    @property
    def is_search(self) -> bool:
        """Whether its sweeper chooses runs by earlier results. Such sweepers have a number of trials."""
        return "n_trials" in self.sweeper


@dataclass(frozen=True)
class BestTrial:
    """The best trial of a search with one objective.

    Attributes:
        params: the chosen values, by key.
        value: the value of the objective.
    """

    params: Mapping[str, Any]
    value: float


def read_sweep_file(sweep_dir: Path, name: str = SWEEP_FILE) -> SweepFile:
    """Read multirun.yaml of a sweep, or an earlier copy of it.

    Raises:
        HydraFileError: it can't be read, or has no settings of Hydra.
    """
    try:
        content = _load(sweep_dir / name)
        hydra = content["hydra"]
        if not isinstance(hydra, Mapping):
            raise TypeError
        overrides = _section(hydra, "overrides")
        typed_overrides = [str(override) for kind in ("task", "hydra") for override in overrides.get(kind) or ()]
        sources = _section(hydra, "runtime").get("config_sources") or ()
        folders = [str(source["path"]) for source in sources if source["provider"] == "command-line"]
        config_name = _section(hydra, "job").get("config_name")
        subdir = _section(hydra, "sweep").get("subdir")
        sweeper = _section(hydra, "sweeper")
        return SweepFile(
            overrides=tuple(map(override_by_new_name, typed_overrides)),
            sweeper=sweeper,
            subdir=None if subdir is None else str(subdir),
            output_subdir=hydra.get("output_subdir", HYDRA_DIR),
            config_name=None if config_name is None else str(config_name),
            config_dir=folders[0] if folders else None,
            optimized_metric=content.get("optimized_metric"),
            is_complete={"task", "hydra"} <= overrides.keys() and {"job", "runtime"} <= hydra.keys()
            and "_target_" in sweeper and subdir is not None,
        )  # fmt: skip
    except _UNREADABLE as error:
        raise HydraFileError(type(error).__name__) from error


def read_overrides(run_dir: Path, output_subdir: str = HYDRA_DIR) -> list[str]:
    """Read the overrides of a run, without Hydra's own, with current key names.

    Args:
        output_subdir: Hydra's folder in the run directory.

    Raises:
        HydraFileError: they can't be read.
    """
    try:
        overrides = _load(run_dir / output_subdir / _OVERRIDES_FILE) or ()
        return [override_by_new_name(str(override)) for override in overrides]
    except _UNREADABLE as error:
        raise HydraFileError(type(error).__name__) from error


def read_best_trial(sweep_dir: Path) -> BestTrial:
    """Read the best trial of Optuna's sweeper.

    Raises:
        HydraFileError: there is no such file, or the search had several objectives.
    """
    try:
        content = _load(sweep_dir / _BEST_FILE)
        return BestTrial(dict(content["best_params"]), float(content["best_value"]))
    except _UNREADABLE as error:
        raise HydraFileError(type(error).__name__) from error


def _load(path: Path) -> Any:
    return yaml.safe_load(path.read_text("utf-8"))


def _section(hydra: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return hydra[name] if isinstance(hydra.get(name), Mapping) else {}
