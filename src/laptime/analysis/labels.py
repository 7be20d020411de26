"""Finds the keys in which groups differ, and makes a short label for each group."""

import hashlib
from collections.abc import Mapping, Sequence

from laptime.analysis.conditions import CONDITIONS, differing_settings
from laptime.analysis.group import Group
from laptime.analysis.mismatch import SETTINGS
from laptime.text import escape_control_chars, short_name

# Config groups that a label names as a whole: `model=cnn` instead of every key in which the CNN differs.
CONFIG_GROUPS = ("model", "dataset", "optimizer", "scheduler")
# Key for the experiment of a group's runs, if several experiments are compared.
EXPERIMENT = "experiment"
_ABSENT = object()
_RANKS = "strategy.world_size"
_LONGEST_VALUE = 60
_DIGITS = 4


def keys_set_by_experiment(groups: Sequence[Group]) -> set[str]:
    """Return the keys that are constant within each experiment, so that naming the experiment names their values.

    The result is empty if there are fewer than two experiments.
    """
    by_experiment: dict[str, list[Group]] = {}
    for group in groups:
        by_experiment.setdefault(str(group.config.get(EXPERIMENT, "")), []).append(group)
    if len(by_experiment) < 2:
        return set()
    keys = {key for group in groups for key in group.config} - {EXPERIMENT}
    return {
        key
        for key in keys
        if all(
            len({repr(group.config.get(key, _ABSENT)) for group in members}) == 1 for members in by_experiment.values()
        )
    }


def differing_keys(groups: Sequence[Group]) -> list[str]:
    """Return the keys in which the groups differ.

    A config group whose class differs replaces all of its keys. An experiment replaces the keys that it sets.
    """
    keys = dict.fromkeys(key for group in groups for key in group.config)
    explained = keys_set_by_experiment(groups)
    keys = dict.fromkeys(key for key in keys if key not in explained)
    differing = [key for key in keys if len({repr(group.config.get(key, _ABSENT)) for group in groups}) > 1]
    whole = [name for name in CONFIG_GROUPS if f"{name}._target_" in differing]
    shortened = dict.fromkeys(next((name for name in whole if key.startswith(f"{name}.")), key) for key in differing)
    # A plain process has no DDP settings. Their absence alone is not a difference.
    return [
        key for key in shortened if key in whole or len({repr(g.config[key]) for g in groups if key in g.config}) > 1
    ]


def value_of(group: Group, key: str, digits: int | None = _DIGITS) -> str:
    """Return a group's value of one of the `differing_keys`, as text for tables and labels.

    Args:
        digits: number of significant digits to which long numbers are rounded; None: no rounding.
    """
    if key == "device":
        return group.first.device.used
    if key in CONFIG_GROUPS and key in group.config:  # another program's configuration has a plain value here
        return _shown(group.config[key], digits)
    if key == "model":
        return escape_control_chars(group.first.model.name)
    if key == "dataset":
        return escape_control_chars(group.first.dataset.name)
    if key in CONFIG_GROUPS:
        return str(group.config.get(f"{key}._target_")).rpartition(".")[2].lower()
    return _shown(group.config.get(key), digits)


def _shown(value: object, digits: int | None) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, float) and digits is not None and len(text) > 2 * digits:  # drawn from a range
        text = f"{value:.{digits}g}"
    if len(text) > _LONGEST_VALUE:
        text = f"{text[: _LONGEST_VALUE - 10]}...{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    return escape_control_chars(text)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Return the last part of each key, or the whole key if two keys have the same last part."""
    short = {key: short_name(key) for key in keys}
    return {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}


def labels_of(groups: Sequence[Group]) -> list[str]:
    """Return a label for each group that distinguishes it from the others, e.g. `ws=2 batch_size=64`.

    Conditions are part of the labels if they differ.
    """
    if len(groups) == 1:
        return [f"{groups[0].first.model.name} on {groups[0].first.dataset.name}"]
    names = short_names(differing_keys(groups))
    labels: list[str] = []
    for digits in (_DIGITS, None):
        if len(set(labels)) == len(groups):
            break
        labels = [_label(group, names, digits) for group in groups]
    for condition in CONDITIONS:
        if len({getattr(group.conditions, condition) for group in groups}) > 1:
            short = 8 if condition == "checksum" else 40
            texts: list[str] = [getattr(group.conditions, condition) for group in groups]
            if condition == SETTINGS:
                shown = truncate_distinctly(differing_settings(texts), short)
            else:
                shown = [text[:short] for text in texts]
            labels = [f"{label} {condition}={text}".strip() for label, text in zip(labels, shown, strict=True)]
    return labels


def truncate_distinctly(texts: Sequence[str], length: int) -> list[str]:
    """Return the first `length` characters of each text, or whole texts if different ones have the same beginning."""
    beginnings = [text[:length] for text in texts]
    return [
        text if len({other for other in texts if other[:length] == beginning}) > 1 else beginning
        for text, beginning in zip(texts, beginnings, strict=True)
    ]


def _label(group: Group, names: Mapping[str, str], digits: int | None) -> str:
    parts = [f"{name}={value_of(group, key, digits)}" for key, name in names.items() if _has(group, key)]
    return " ".join([*parts, *(["ddp"] if group.world_size == 1 and not group.is_plain else [])])


def _has(group: Group, key: str) -> bool:
    return key in group.config or key in CONFIG_GROUPS or key == "device"


def common_label(labels: Sequence[str]) -> str:
    """Return the parts that all labels have in common."""
    shared = _shared(labels)
    return " ".join(part for part in labels[0].split() if part in shared)


def shorter_labels(labels: Sequence[str]) -> list[str]:
    """Return the labels without the parts that all of them have in common. A single label is unchanged."""
    shared = _shared(labels) if len(labels) > 1 else set()
    return [" ".join(part for part in label.split() if part not in shared) for label in labels]


def without_ranks(label: str) -> str:
    """Return a label without the number of ranks."""
    ranks = tuple(f"{name}=" for name in (_RANKS, short_name(_RANKS)))
    return " ".join(part for part in label.split() if not part.startswith(ranks))


def _shared(labels: Sequence[str]) -> set[str]:
    return set.intersection(*(set(label.split()) for label in labels))


def label_sort_key(label: str) -> list[tuple[str, float, str]]:
    """Return a sort key for labels that orders numbers by value."""
    parts = []
    for part in label.split():
        name, _, value = part.partition("=")
        try:
            parts.append((name, float(value), ""))
        except ValueError:
            parts.append((name, float("inf"), value))
    return parts
