"""The settings that distinguish one run of a timed training from another: Hydra's configuration or hyperparameters."""

import functools
import hashlib
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from yaml import YAMLError

from laptime.record.masking import MASK, is_secret, mask

# Keys of Hydra's configuration that don't change the training: paths, names, output. The seed is recorded separately.
_IGNORED_KEYS = ("paths", "logger", "extras", "tags", "task_name", "hydra", "ckpt_path", "seed")
# Booleans that turn training and testing on, as in lightning-hydra-template. Elsewhere they may be config groups.
_SWITCHES = ("train", "test")
# Keys of the trainer section that are recorded from the Trainer itself, or that only affect output.
_IGNORED_TRAINER_KEYS = (
    "accelerator", "devices", "num_nodes", "strategy", "sync_batchnorm", "default_root_dir", "enable_progress_bar",
    "enable_model_summary", "enable_checkpointing", "logger", "callbacks", "profiler",
)  # fmt: skip


_ENV_INTERPOLATION = re.compile(r"\$\{oc\.env:(?P<name>[^${},]+)(?:,(?P<default>[^${}]*))?\}")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_MAX_DEPTH, _MAX_ITEMS, _MAX_TEXT_LENGTH = 20, 1000, 300


@dataclass(frozen=True)
class HydraJob:
    """The Hydra job that is running in this process.

    Attributes:
        output_dir: the job's output directory.
        config: the nested composed configuration, in which only environment variables are resolved; None: it can't be
            read.
    """

    output_dir: Path
    config: dict[str, Any] | None

    @property
    def settings(self) -> dict[str, Any]:
        """The keys that can change the result or its timing."""
        return {
            key: _without_ignored_keys(key, value)
            for key, value in (self.config or {}).items()
            if key not in _IGNORED_KEYS and not (key in _SWITCHES and isinstance(value, bool))
        }

    @property
    def seed(self) -> int | None:
        seed = (self.config or {}).get("seed")
        return seed if isinstance(seed, int) and not isinstance(seed, bool) else None


def hydra_job() -> HydraJob | None:
    """Return the Hydra job of this process; None: there is none. This does not import Hydra."""
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
    except MissingMandatoryValue:  # composed only: no job is running
        return None
    try:
        composed = OmegaConf.load(output_dir / (hydra.output_subdir or ".hydra") / "config.yaml")
        config = _resolve_env(OmegaConf.to_container(composed, resolve=False))
    except (OSError, ValueError, YAMLError):
        return HydraJob(output_dir, None)
    return HydraJob(output_dir, config if isinstance(config, dict) else None)


def _resolve_env(value: Any) -> Any:
    """Resolve environment variables, which the user may vary between runs, and mask secrets.

    Other interpolations stay unresolved, because `${now:...}` and paths would make every run different.
    """
    if isinstance(value, dict):
        return {str(key): _resolve_env(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_resolve_env(item) for item in value]
    return _ENV_INTERPOLATION.sub(_env_value, value) if isinstance(value, str) else value


def _env_value(match: re.Match[str]) -> str:
    name = match["name"].strip()
    if is_secret(name):
        return MASK
    return os.environ.get(name, match[0] if match["default"] is None else match["default"].strip())


def _without_ignored_keys(key: str, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if key == "trainer" or str(value.get("_target_", "")).rpartition(".")[2] == "Trainer":
        return {name: item for name, item in value.items() if name not in _IGNORED_TRAINER_KEYS}
    return {
        name: _without_ignored_keys(name, item)
        for name, item in value.items()
        if not (isinstance(item, dict) and str(item.get("_target_", "")).rpartition(".")[2] == "LapTimer")
    }


def plain(value: Any, depth: int = 0) -> Any:
    """Convert a value to JSON types. Other objects become a string without memory addresses.

    So the string is the same for equal values in every process.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if depth > _MAX_DEPTH:
        return type(value).__name__
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, bool | int | float | str):  # subclasses, such as numpy.float64
        return next(cls(value) for cls in (bool, int, float, str) if isinstance(value, cls))
    if type(value).__module__.startswith("omegaconf."):
        from omegaconf import OmegaConf

        return plain(OmegaConf.to_container(value), depth + 1)
    if isinstance(value, Mapping):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return (
            _digest(repr(value), f"{len(value)} values")
            if len(value) > _MAX_ITEMS
            else [plain(item, depth + 1) for item in value]
        )
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, set | frozenset):
        return sorted((plain(item, depth + 1) for item in value), key=repr)
    if isinstance(value, functools.partial):
        return {"_target_": plain(value.func), "args": plain(value.args, depth + 1), **plain(value.keywords, depth + 1)}
    if callable(getattr(value, "numpy", None)) or callable(getattr(value, "tobytes", None)):
        return _array_to_plain(value)
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        code = getattr(value, "__code__", None)
        name = f"{value.__module__}.{value.__qualname__}"
        return name if code is None else _digest(f"{code.co_code!r}{code.co_names}{code.co_consts}", name)
    text = _ADDRESS.sub("", repr(value))
    return text if len(text) <= _MAX_TEXT_LENGTH else _digest(text, type(value).__name__)


def _array_to_plain(value: Any) -> Any:
    """Convert a NumPy or torch scalar to a number, and an array to its shape and digest."""
    array = value.detach().cpu().double().numpy() if hasattr(value, "detach") else value
    if getattr(array, "ndim", 0) == 0:
        return plain(array.item())
    return _digest(array.tobytes(), f"{type(value).__name__} {tuple(array.shape)}")


def _digest(content: str | bytes, name: str) -> str:
    data = content if isinstance(content, bytes) else _ADDRESS.sub("", content).encode()
    return f"{name} {hashlib.sha256(data).hexdigest()[:12]}"


def structure_of(module: Any) -> str:
    """Return a digest of a network's layers and their sizes."""
    return _digest(repr(module), type(module).__name__)


def optimizer_settings(optimizer: Any) -> dict[str, Any]:
    """Return an optimizer's class and defaults, and the settings of parameter groups that differ from them."""
    defaults = dict(getattr(optimizer, "defaults", {}))
    settings: dict[str, Any] = {"_target_": type(optimizer).__name__, **plain(defaults)}
    for number, group in enumerate(getattr(optimizer, "param_groups", [])):
        settings_of_group = {name: value for name, value in group.items() if name not in ("params", "initial_lr", "lr")}
        settings_of_group["lr"] = group.get("initial_lr", group.get("lr"))  # before any scheduler changed it
        differing = {name: plain(value) for name, value in settings_of_group.items() if value is not defaults.get(name)}
        if differing := {name: value for name, value in differing.items() if value != plain(defaults.get(name))}:
            settings[f"group_{number}"] = differing
    return settings


def deep_merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two nested mappings. For a key in both, the second value wins."""
    result = dict(first)
    for key, value in second.items():
        old = result.get(key)
        result[key] = deep_merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return result


def mask_secrets(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a configuration with its secrets masked."""
    content: dict[str, Any] = mask(dict(config))
    return content
