"""Groups repeats: runs that differ only in the seed, on the same machine, with the same code and data."""

from collections.abc import Sequence
from dataclasses import replace

from laptime.analysis.conditions import Conditions, conditions_of
from laptime.analysis.group import Group
from laptime.analysis.labels import EXPERIMENT, label_sort_key, labels_of
from laptime.analysis.load import Run


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Group repeats, sorted by label. The groups do not depend on the order of the runs."""
    runs_by_identity: dict[tuple[str, Conditions], list[Run]] = {}
    for run in runs:
        runs_by_identity.setdefault((run.group_hash, conditions_of(run)), []).append(run)
    groups = []
    for (_, conditions), repeats in runs_by_identity.items():
        repeats.sort(key=lambda run: (run.seed is None, run.seed or 0, str(run.path)))
        config = {key: value for key, value in repeats[0].config.items() if key != "seed"}
        if repeats[0].record.is_laptime_training or EXPERIMENT not in config:  # keep another program's key
            config[EXPERIMENT] = " and ".join(sorted({str(run.record.experiment_name) for run in repeats}))
        groups.append(Group(tuple(repeats), config, conditions))
    if len({str(group.config[EXPERIMENT]) for group in groups}) == 1:  # does not distinguish groups
        groups = [replace(g, config={k: v for k, v in g.config.items() if k != EXPERIMENT}) for g in groups]
    labels = labels_of(groups)
    named = [replace(group, label=label) for group, label in zip(groups, labels, strict=True)]
    return sorted(named, key=lambda group: label_sort_key(group.label))
