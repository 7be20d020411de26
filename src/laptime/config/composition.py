"""Composition with Hydra, and the folders that it searches. laptime.config.explain explains the errors."""

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from omegaconf import DictConfig

from laptime.errors import UserError


class ConfigFiles(ConfigRepository):
    """Hydra's look-up of configuration files, with copies that share the sources.

    Hydra copies its look-up whenever it composes or lists the options of a group, 130 times for --help, and with it the
    whole ConfigStore. Sources don't change, and a copy with another search path gets a new list of them.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "ConfigFiles":
        return copy.copy(self)


def config_dir() -> Path:
    """The folder conf/: inside the package in an installed wheel, at the top of the checkout otherwise."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def refuse_name_clashes(text: str, folder: Path) -> None:
    """Refuse a folder with a file that has the name of one of Laptime's: Hydra would use Laptime's.

    Args:
        text: the flag or override that names the folder.
    """
    conf = config_dir()
    if folder.resolve() == conf.resolve():
        return
    for path in sorted(conf.rglob("*.yaml")):
        name = path.relative_to(conf)
        if (folder / name).is_file():
            raise UserError(f"{text}: Laptime has a file {name}, which Hydra finds first. Rename your file.")


def compose_with_hydra(hydra: Hydra, name: str, overrides: Sequence[str], mode: RunMode = RunMode.RUN) -> DictConfig:
    """Compose. A missing folder in `hydra.searchpath`, of which Hydra warns, is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", r".*path=.* is not\s+available", UserWarning)
        composed = hydra.compose_config(name, list(overrides), run_mode=mode, with_log_configuration=False)
    for place in composed.hydra.searchpath:
        if (folder := Path(str(place).removeprefix("file://"))).is_dir():
            refuse_name_clashes(f"hydra.searchpath=[{place}]", folder)
    return composed


def hydra_groups(hydra: Hydra) -> list[str]:
    """The names of the config groups."""
    return [str(name) for name in hydra.config_loader.list_groups("")]
