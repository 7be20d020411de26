"""Keys of run.json that older versions of Laptime wrote under other names."""

from typing import Any

# The old keys by section. The keys of `noise.epochs` are those of each epoch in that list.
RENAMED_KEYS = {
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


def rename_old_keys(record: dict[str, Any]) -> None:
    """Rename the old keys of a record in place. If a record has both names of a value, the new one is kept.

    Args:
        record: the content of run.json. Values of wrong types stay, so that reading the record reports them.
    """
    for section, names in RENAMED_KEYS.items():
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
