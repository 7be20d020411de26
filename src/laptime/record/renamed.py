"""New names for old keys of the configuration, so that files of an older Laptime can be read."""

import re
from collections.abc import Mapping
from typing import Any

from laptime.record.override_text import split

# New names by old ones. Hashes are computed with the old names, so that they stay the same.
RENAMED = {
    "training.accumulate_grad_batches": "training.num_microbatches",
    "scheduler.warmup_share": "scheduler.warmup_fraction",
}
_OLD_NAMES = {new: old for old, new in RENAMED.items()}
# In an open group only arguments of these classes have a new name. A user's class may have an argument of the old name.
_CLASSES = {"scheduler.warmup_share": "laptime.schedulers."}
# Former keys of the configuration that are root keys of run.json now.
_MOVED_TO_RECORD = ("run_dir", "run_label", "experiment_name", "runs_at_once")
_FORMER_INTERPOLATION = re.compile(r"\$\{(run_dir|run_label|experiment_name)\}")


def by_new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a hashed configuration or a checkpoint's identity, both by full key, with the new names."""
    return {_renamed(key, RENAMED, values): value for key, value in values.items()}


def by_old_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with the old names, as the inverse of `by_new_names`."""
    return {_renamed(key, _OLD_NAMES, values): value for key, value in values.items()}


def _renamed(key: str, names: Mapping[str, str], values: Mapping[str, Any]) -> str:
    if key not in names:
        return key
    target = values.get(f"{key.partition('.')[0]}._target_")
    return names[key] if _has_new_name(RENAMED.get(key, key), target) else key


def _has_new_name(new_key: str, target: Any) -> bool:
    return str(target or "").startswith(_CLASSES.get(_OLD_NAMES[new_key], ""))


def override_by_new_name(override: str) -> str:
    """Return an override with the new names: `training.num_microbatches=2`."""
    prefix, key, value = split(override)
    if value is not None:
        value = _FORMER_INTERPOLATION.sub(r"${laptime:\1}", value)
    return f"{prefix}{RENAMED.get(key, key)}{'' if value is None else f'={value}'}"


def update(record: dict[str, Any]) -> None:
    """Rename the keys of a record's configuration in place, and move those that are root keys now.

    In a record of a training that Laptime only timed, the configuration is the user's, and only `run_dir` moves.
    """
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
        if isinstance(section, dict) and name in section and _has_new_name(new, section.get("_target_")):
            section[new.partition(".")[2]] = section.pop(name)
    if isinstance(record.get("hashed_config"), dict):
        record["hashed_config"] = by_new_names(record["hashed_config"])
