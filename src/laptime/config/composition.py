"""What Hydra composes: from where, under which keys, in which groups. Mistakes in it are explained elsewhere."""

import warnings
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from omegaconf import DictConfig

from laptime.errors import UserError


def config_dir() -> Path:
    """The folder conf/: inside the package in an installed wheel, at the top of the checkout otherwise."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def refuse_name_clashes(typed: str, folder: Path) -> None:
    """Refuse a folder with an option that Laptime has under the same name: Hydra would take Laptime's."""
    ours = config_dir()
    if folder.resolve() == ours.resolve():
        return
    for path in sorted(ours.rglob("*.yaml")):
        name = path.relative_to(ours)
        if (folder / name).is_file():
            raise UserError(f"{typed}: {name} is one of Laptime's own files, which Hydra finds first. Rename yours.")


def compose_with_hydra(hydra: Hydra, name: str, overrides: Sequence[str], mode: RunMode = RunMode.RUN) -> DictConfig:
    """What Hydra composes; it warns of a folder of `hydra.searchpath` that is missing, which is an error here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", r".*path=.* is not\s+available", UserWarning)
        composed = hydra.compose_config(name, list(overrides), run_mode=mode, with_log_configuration=False)
    for place in composed.hydra.searchpath:
        if (folder := Path(str(place).removeprefix("file://"))).is_dir():
            refuse_name_clashes(f"hydra.searchpath=[{place}]", folder)
    return composed


def hydra_groups(hydra: Hydra) -> list[str]:
    """The config groups by name."""
    return [str(name) for name in hydra.config_loader.list_groups("")]
