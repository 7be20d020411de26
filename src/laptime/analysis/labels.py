"""What tells groups from each other: the keys in which they differ, and a short label for each."""

import hashlib
from collections.abc import Mapping, Sequence

from laptime.analysis.conditions import CONDITIONS, differing_settings
from laptime.analysis.group import Group
from laptime.analysis.mismatch import SETTINGS
from laptime.text import escape_control_chars, short_name

# Config groups of which one part may name all of it: `model=cnn` instead of every key in which the CNN differs.
CONFIG_GROUPS = ("model", "dataset", "optimizer", "scheduler")
# Which experiment the runs of a group were composed with, where several are compared.
EXPERIMENT = "experiment"
_ABSENT = object()
_RANKS = "strategy.world_size"
_LONGEST_VALUE = 60
_DIGITS = 4


def keys_set_by_experiment(groups: Sequence[Group]) -> set[str]:
    """The keys that have one value in each experiment: where several are compared, those differ with the experiment."""
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
            len({repr(each.config.get(key, _ABSENT)) for each in members}) == 1 for members in by_experiment.values()
        )
    }


def differing_keys(groups: Sequence[Group]) -> list[str]:
    """The keys in which the groups differ; a config group stands for all of its keys where its class differs, and an
    experiment for what it sets."""
    keys = dict.fromkeys(key for group in groups for key in group.config)
    explained = keys_set_by_experiment(groups)
    keys = dict.fromkeys(key for key in keys if key not in explained)
    differing = [key for key in keys if len({repr(group.config.get(key, _ABSENT)) for group in groups}) > 1]
    whole = [name for name in CONFIG_GROUPS if f"{name}._target_" in differing]
    found = dict.fromkeys(next((name for name in whole if key.startswith(f"{name}.")), key) for key in differing)
    # Settings of DDP that a plain process has none of don't tell groups apart by themselves.
    return [key for key in found if key in whole or len({repr(g.config[key]) for g in groups if key in g.config}) > 1]


def value_of(group: Group, key: str, digits: int | None = _DIGITS) -> str:
    """A group's value of one of the `differing_keys`, for people.

    Args:
        digits: that a number with many more is rounded to; None: as it is.
    """
    if key == "device":
        return group.first.device.used
    if key in CONFIG_GROUPS and key in group.config:  # a plain value, of somebody else's configuration
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
    """The last part of each key, the whole of it where two would be the same."""
    short = {key: short_name(key) for key in keys}
    return {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}


def labels_of(groups: Sequence[Group]) -> list[str]:
    """What tells each group from the others, like `ws=2 batch_size=64`; with its conditions where these differ."""
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
    """The first `length` characters of each text; the whole of it where different texts would look the same."""
    cut = [text[:length] for text in texts]
    return [
        text if len({other for other in texts if other[:length] == short}) > 1 else short
        for text, short in zip(texts, cut, strict=True)
    ]


def _label(group: Group, names: Mapping[str, str], digits: int | None) -> str:
    parts = [f"{name}={value_of(group, key, digits)}" for key, name in names.items() if _has(group, key)]
    return " ".join([*parts, *(["ddp"] if group.world_size == 1 and not group.is_plain else [])])


def _has(group: Group, key: str) -> bool:
    return key in group.config or key in CONFIG_GROUPS or key == "device"


def common_label(labels: Sequence[str]) -> str:
    """The parts of the first label that all of them have."""
    shared = _shared(labels)
    return " ".join(part for part in labels[0].split() if part in shared)


def shorter_labels(labels: Sequence[str]) -> list[str]:
    """The labels without the parts that all of them have; a single one as it is."""
    shared = _shared(labels) if len(labels) > 1 else set()
    return [" ".join(part for part in label.split() if part not in shared) for label in labels]


def without_ranks(label: str) -> str:
    """A label without the number of ranks."""
    ranks = tuple(f"{name}=" for name in (_RANKS, short_name(_RANKS)))
    return " ".join(part for part in label.split() if not part.startswith(ranks))


def _shared(labels: Sequence[str]) -> set[str]:
    return set.intersection(*(set(label.split()) for label in labels))


def label_sort_key(label: str) -> list[tuple[str, float, str]]:
    """A key to sort labels by, numbers by their values."""
    parts = []
    for part in label.split():
        name, _, value = part.partition("=")
        try:
            parts.append((name, float(value), ""))
        except ValueError:
            parts.append((name, float("inf"), value))
    return parts
