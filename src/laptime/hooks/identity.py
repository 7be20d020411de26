"""What tells a run of somebody else's training from others: what Hydra composed, hyperparameters, or what was given."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaml import YAMLError

from laptime.record.masking import mask

# Of a configuration that Hydra composed: places, names and what only shows; `seed` has a place of its own.
_NO_SETTING = ("paths", "logger", "extras", "tags", "task_name", "hydra", "ckpt_path", "seed")
# Whether to do it at all, in projects after lightning-hydra-template; elsewhere they may be whole groups.
_SWITCHES = ("train", "test")
# Of a Trainer's section: what the record says as it was in the end, and what only shows.
_NO_TRAINER_SETTING = (
    "accelerator", "devices", "num_nodes", "strategy", "sync_batchnorm", "default_root_dir", "enable_progress_bar",
    "enable_model_summary", "enable_checkpointing", "logger", "callbacks", "profiler",
)  # fmt: skip


@dataclass(frozen=True)
class HydraJob:
    """A job of Hydra's that is running in this process.

    Attributes:
        output_dir: of the job.
        config: that it composed, nested; interpolations as they stand, but those of environment variables.
    """

    output_dir: Path
    config: dict[str, Any] | None

    @property
    def settings(self) -> dict[str, Any]:
        """What can change the result or its timing."""
        return {
            key: _without_places(key, value)
            for key, value in (self.config or {}).items()
            if key not in _NO_SETTING and not (key in _SWITCHES and isinstance(value, bool))
        }

    @property
    def seed(self) -> int | None:
        seed = (self.config or {}).get("seed")
        return seed if isinstance(seed, int) and not isinstance(seed, bool) else None


def hydra_job() -> HydraJob | None:
    """The job that Hydra runs here; None: none. Loads no Hydra."""
    if "hydra.core.hydra_config" not in sys.modules:
        return None
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue

    if not HydraConfig.initialized():
        return None
    hydra = HydraConfig.get()
    try:
        output_dir = Path(hydra.runtime.output_dir)
    except MissingMandatoryValue:  # it was only composed, and no job runs
        return None
    try:
        composed = OmegaConf.load(output_dir / (hydra.output_subdir or ".hydra") / "config.yaml")
        config = _environment_resolved(OmegaConf.to_container(composed, resolve=False))
    except (OSError, ValueError, YAMLError):
        return HydraJob(output_dir, None)
    return HydraJob(output_dir, config if isinstance(config, dict) else None)


def _environment_resolved(value: Any) -> Any:
    """Interpolations as they stand: `${now:...}` and paths would make each run another. Variables of the environment
    are looked up: they may be what was changed."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(value, dict):
        return {str(key): _environment_resolved(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_environment_resolved(each) for each in value]
    if isinstance(value, str) and value.startswith("${oc.env:"):
        try:
            return OmegaConf.to_container(OmegaConf.create([value]), resolve=True)[0]  # type: ignore[index]
        except OmegaConfBaseException:
            return value
    return value


def _without_places(key: str, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if key == "trainer" or str(value.get("_target_", "")).rpartition(".")[2] == "Trainer":
        return {name: each for name, each in value.items() if name not in _NO_TRAINER_SETTING}
    return {
        name: _without_places(name, each)
        for name, each in value.items()
        if not (isinstance(each, dict) and str(each.get("_target_", "")).rpartition(".")[2] == "LapTimer")
    }


def plain(value: Any) -> Any:
    """A value as JSON has it: what is no number, text, list or mapping becomes the name of its class."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    name = getattr(value, "__name__", None)
    return name if isinstance(name, str) else type(value).__name__


def optimizer_settings(optimizer: Any) -> dict[str, Any]:
    """An optimizer's class and the settings that it was made with."""
    return {"_target_": type(optimizer).__name__, **plain(dict(getattr(optimizer, "defaults", {})))}


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested mappings in one; of one key the second's value stands."""
    both = dict(first)
    for key, value in second.items():
        here = both.get(key)
        both[key] = merged(here, value) if isinstance(here, dict) and isinstance(value, Mapping) else value
    return both


def masked(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without secrets."""
    content: dict[str, Any] = mask(dict(config))
    return content
