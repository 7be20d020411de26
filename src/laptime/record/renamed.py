"""Keys of the configuration that had other names: what an older Laptime wrote is read by the names of today."""

import re
from collections.abc import Mapping
from typing import Any

from laptime.record.override_text import split

# By the old name. Hashes of a configuration are made of the old names, so that they stay what they were.
RENAMED = {"training.accumulate_grad_batches": "training.num_microbatches"}
_OLD = {new: old for old, new in RENAMED.items()}
# Former keys of the configuration that are keys of the record now.
_MOVED_TO_RECORD = ("run_dir", "run_label", "experiment_name", "runs_at_once")
_FORMER_INTERPOLATION = re.compile(r"\$\{(run_dir|run_label|experiment_name)\}")


def by_new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by full key, as a hashed configuration and a checkpoint's identity have them."""
    return {RENAMED.get(key, key): value for key, value in values.items()}


def by_old_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `by_new_names`."""
    return {_OLD.get(key, key): value for key, value in values.items()}


def override_by_new_name(override: str) -> str:
    """An override as it would be typed today: `training.num_microbatches=2`."""
    prefix, key, value = split(override)
    if value is not None:
        value = _FORMER_INTERPOLATION.sub(r"${laptime:\1}", value)
    return f"{prefix}{RENAMED.get(key, key)}{'' if value is None else f'={value}'}"


def update(record: dict[str, Any]) -> None:
    """Give the keys of a record's configuration their names of today; those of somebody else's training stay."""
    lap, config = record.get("lap"), record.get("config")
    is_laptime_training = not isinstance(lap, dict) or lap.get("timer", "training") == "training"
    if isinstance(config, dict):
        for key in _MOVED_TO_RECORD if is_laptime_training else ("run_dir",):
            if key in config and record.get(key) is None:
                record[key] = config.pop(key)
    if not is_laptime_training:
        return
    for old, new in RENAMED.items():
        group, _, name = old.partition(".")
        section = config.get(group) if isinstance(config, dict) else None
        if isinstance(section, dict) and name in section:
            section[new.partition(".")[2]] = section.pop(name)
    if isinstance(record.get("hashed_config"), dict):
        record["hashed_config"] = by_new_names(record["hashed_config"])
