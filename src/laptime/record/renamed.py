"""New names for old keys of the configuration and of run.json, so that files of an older Laptime can be read."""

import re
from collections.abc import Mapping
from typing import Any

from laptime.record.override_text import split
from laptime.record.score import add_missing_scores

# New names of the configuration by old ones. Hashes are computed with the old names, so that they stay the same.
RENAMED = {
    "training.accumulate_grad_batches": "training.num_microbatches",
    "scheduler.warmup_share": "scheduler.warmup_fraction",
}
_OLD_NAMES = {new: old for old, new in RENAMED.items()}
# In an open group only arguments of these classes have a new name. A user's class may have an argument of the old name.
_CLASSES = {"scheduler.warmup_share": "laptime.schedulers."}
# New names of other keys of run.json by old ones, for each section. `noise.epochs` is a list: its keys are those of
# each epoch.
RENAMED_FIGURES = {
    "timing": {"straggling": "straggler_delay"},
    "contention": {"straggling": "straggler_delay"},
    "communication": {"bare_all_reduce_s": "isolated_all_reduce_s"},
    "peak": {"achieved_fraction": "mfu", "compute_fraction": "compute_mfu"},
    "resources": {"sampler_cpu_share": "sampler_cpu_fraction"},
    "noise.epochs": {
        "steal_share": "steal_fraction",
        "throttled_share": "throttled_fraction",
        "switches_per_s": "involuntary_switches_per_s",
    },
}
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
    return names[key] if _is_renamed(_OLD_NAMES.get(key, key), target) else key


def _is_renamed(old_key: str, target: Any) -> bool:
    return str(target or "").startswith(_CLASSES.get(old_key, ""))


def override_by_new_name(override: str) -> str:
    """Return an override with the new names: `training.num_microbatches=2`."""
    prefix, key, value = split(override)
    if value is not None:
        value = _FORMER_INTERPOLATION.sub(r"${laptime:\1}", value)
    return f"{prefix}{RENAMED.get(key, key)}{'' if value is None else f'={value}'}"


def update(record: dict[str, Any]) -> None:
    """Rename the old keys of a record in place, move those that are root keys now, and add scores to old records.

    If a record has both names of a figure, the new one is kept. In a record of a training that Laptime only timed, the
    configuration is the user's, and only `run_dir` moves.

    Args:
        record: the content of run.json. Values of wrong types stay, so that reading the record reports them.
    """
    _rename_figures(record)
    add_missing_scores(record)
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
        if isinstance(section, dict) and name in section and _is_renamed(old, section.get("_target_")):
            section[new.partition(".")[2]] = section.pop(name)
    if isinstance(record.get("hashed_config"), dict):
        record["hashed_config"] = by_new_names(record["hashed_config"])


def _rename_figures(record: dict[str, Any]) -> None:
    for section, names in RENAMED_FIGURES.items():
        name, _, nested = section.partition(".")
        content = record.get(name)
        if nested:
            content = content.get(nested) if isinstance(content, dict) else None
        for values in content if isinstance(content, list) else [content]:
            _rename(values, names)
        _rename(record.get("missing"), {f"{section}.{old}": f"{section}.{new}" for old, new in names.items()})


def _rename(values: Any, names: dict[str, str]) -> None:
    if not isinstance(values, dict):
        return
    for old, new in names.items():
        if old in values:
            value = values.pop(old)
            values.setdefault(new, value)
