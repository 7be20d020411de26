"""Groups of repeats: runs that differ in nothing but the seed, on the same machine, with the same code and data."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from laptime.analysis.load import Run
from laptime.analysis.statistics import (
    HONEST_REPEATS,
    Summary,
    median_and_deviation,
    relative_width,
    summarise,
    trend,
)
from laptime.errors import printable
from laptime.record.epochs import time_to_accuracy
from laptime.record.files import PARTS

# Config groups of which one part may name all of it: `model=cnn` instead of every key in which the CNN differs.
CONFIG_GROUPS = ("model", "dataset", "optimizer", "scheduler")
# Which experiment the runs of a group were composed with, where several are compared.
EXPERIMENT = "experiment"
_ABSENT = object()
_SHORT = {"strategy.world_size": "ws"}
# A spread between repeats of more than this share of the median is said.
_WIDE_SPREAD = 0.1
# So is a trend of more than this share over the counted epochs.
_TREND = 0.02
_LONGEST_VALUE = 60
_DIGITS = 4


@dataclass(frozen=True)
class Conditions:
    """What two groups can differ in beside their configuration.

    Attributes:
        machine: CPU, number of usable cores, and the accelerator that trained.
        checksum: of the data.
        nodes: torchruns that the ranks were shared among.
        torch: version.
        python: version.
        code: hash of Laptime's own code and of the classes that the configuration names.
        instructions: of the CPU, the best that torch used: AVX2, say; empty where it isn't known.
        settings: environment variables that change the timing, as `NAME=value`, and torch's threads where they were not
            as many as the run was given.
    """

    machine: str
    checksum: str
    nodes: str
    torch: str
    python: str
    code: str
    instructions: str = ""
    settings: str = ""

    @property
    def work(self) -> tuple[str, ...]:
        """What must be equal for two figures to be compared at all; the rest is named beside the comparison."""
        return self.machine, self.checksum, self.instructions


CONDITIONS = tuple(each.name for each in fields(Conditions))


@dataclass(frozen=True)
class Group:
    """Repeats of one configuration under one set of conditions.

    Attributes:
        runs: in the order of their seeds.
        config: what can change result or timing, by full key, without the seed.
        label: what tells it from the other groups, short.
        epoch_time_s, samples_per_s: of the counted epochs.
        remarks: what to know of its figures.
    """

    runs: tuple[Run, ...]
    config: Mapping[str, Any]
    conditions: Conditions
    label: str = ""

    @cached_property
    def epoch_time_s(self) -> Summary:
        return summarise([run.counted["epoch_time_s"].to_list() for run in self.runs])

    @cached_property
    def samples_per_s(self) -> Summary:
        rates = summarise([run.counted["samples_per_s"].to_list() for run in self.runs])
        # Of median times, so that one follows from the other. Of an even number the median of rates is another.
        _, between = median_and_deviation(self.throughputs)
        return replace(rates, median=1 / float(np.median(self.seconds_per_sample)), between=between)

    @property
    def first(self) -> Mapping[str, Any]:
        """The record of one of its runs, for what all of them share."""
        return self.runs[0].record

    @property
    def world_size(self) -> int:
        world_size: int = self.first["strategy"]["world_size"]
        return world_size

    @property
    def num_seeds(self) -> int:
        """Different ones among its repeats: runs of the same seed learn the same."""
        return len({run.record["seed"] for run in self.runs})

    @property
    def hosts(self) -> set[str]:
        """On which its runs were made."""
        return {run.record["environment"]["hostname_hash"] for run in self.runs}

    @property
    def is_plain(self) -> bool:
        """Whether it is a single process without DDP."""
        return self.world_size == 1 and self.first["strategy"]["backend"] is None

    @cached_property
    def seconds_per_sample(self) -> list[float]:
        """Of each repeat: its median epoch time over the samples of an epoch. What speedups are ratios of."""
        return [float(run.counted["epoch_time_s"].median() / run.counted["num_samples"].median()) for run in self.runs]

    @property
    def throughputs(self) -> list[float]:
        """samples_per_s of each repeat, as in run.json."""
        return [1 / seconds for seconds in self.seconds_per_sample]

    @cached_property
    def interval_width(self) -> float | None:
        """Of the 95% interval of the epoch time, as a share of it; None with one repeat."""
        return relative_width(self.seconds_per_sample)

    def is_precise(self, target: float) -> bool:
        """Whether that is at most the target, with enough repeats to trust it."""
        width = self.interval_width
        return width is not None and width <= target and len(self.runs) >= HONEST_REPEATS

    def values(self, section: str, key: str) -> list[float]:
        """A figure of run.json for each repeat that has it; what was learnt, once for each seed."""
        runs = {run.record["seed"]: run for run in reversed(self.runs)}.values() if section == "result" else self.runs
        found = [run.record[section].get(key) for run in runs]
        return [float(value) for value in found if isinstance(value, int | float)]

    def median(self, section: str, key: str) -> float | None:
        """The median of a figure of run.json over the repeats; None: not measured."""
        values = self.values(section, key)
        return float(np.median(values)) if values else None

    def times_to(self, accuracy: float) -> list[float | None]:
        """Seconds of training until each repeat first reached a validation accuracy; None: never, or not known."""
        return [
            time_to_accuracy(
                zip(run.epochs["elapsed_s"].tolist(), run.epochs["val_accuracy"].tolist(), strict=True),
                accuracy,
                int(run.epochs["epoch"].iloc[0]),
            )
            for run in self.runs
        ]

    @property
    def absent_devices(self) -> list[str]:
        """Devices that some of its runs were to train on, and trained on the CPU instead."""
        if self.first["device"]["used"] != "cpu":
            return []
        return sorted({run.record["device"]["requested"] for run in self.runs} - {"auto", "cpu"})

    @property
    def quality(self) -> str:
        """The worst grade of its repeats: A, B or C; empty where none was given."""
        return max((grade for run in self.runs if (grade := run.record["quality"]["grade"]) is not None), default="")

    @cached_property
    def remarks(self) -> list[str]:
        found = []
        if self.absent_devices:
            found.append(f"{', '.join(self.absent_devices)} was asked for and absent: trained on cpu")
        if self.first["strategy"]["oversubscribed"]:
            found.append("oversubscribed: more threads than cores")
        worst = next((run for run in self.runs if run.record["quality"]["grade"] == self.quality), None)
        if worst is not None and self.quality > "A":
            num = sum(run.record["quality"]["grade"] == self.quality for run in self.runs)
            reasons = "; ".join(worst.record["quality"]["reasons"])
            found.append(f"quality {self.quality} of {num} of {len(self.runs)} repeats: {printable(reasons)}")
        if len(self.runs) == 1:
            found.append("one repeat: no interval")
        between = self.samples_per_s.between
        if between is not None and between > _WIDE_SPREAD * self.samples_per_s.median:
            found.append(f"repeats differ by {between / self.samples_per_s.median:.0%}")
        rise = trend([run.counted["epoch_time_s"].to_list() for run in self.runs])
        if rise is not None and rise < -_TREND:
            found.append(f"epochs still get faster, by {-rise:.0%}: measure.warmup_epochs is too small")
        elif rise is not None and rise > _TREND:
            found.append(f"epochs get slower, by {rise:.0%}: is the machine throttling, or busy?")
        latest = max(self.runs, key=lambda run: str(run.record.get("started_at")))
        target = latest.record["config"]["measure"].get("target_interval")
        if target is not None:
            width = "unknown" if self.interval_width is None else f"{self.interval_width:.1%}"
            verdict = "reached" if self.is_precise(target) else "not reached"
            found.append(f"target interval of {target:.1%} {verdict} with {len(self.runs)} repeats: {width}")
        if len(self.hosts) > 1:
            found.append(f"on {len(self.hosts)} hosts")
        if any(run.is_resumed for run in self.runs):
            found.append("resumed from a checkpoint: total time is of the epochs since")
        if any(len(run.record["attempts"]) > 1 for run in self.runs):
            found.append("some runs were broken off and gone on with")
        early = {run.record["result"].get("stop_reason") for run in self.runs} - {"epochs", None}
        if early:
            found.append(f"stopped by {', '.join(sorted(early))}")
        return found + sorted({remark for run in self.runs for remark in run.remarks})


def conditions_of(run: Run) -> Conditions:
    environment, device = run.record["environment"], run.record["device"]
    machine = f"{environment['cpu']}, {environment['num_usable_cores']} cores"
    if device["used"] != "cpu":
        machine += f", {device['name']}{' with operators on the CPU' if device.get('mps_fallback') else ''}"
    return Conditions(
        machine=machine,
        checksum=str(run.record["dataset"]["checksum"]),
        nodes=str(run.record["strategy"].get("num_nodes") or 1),
        torch=str(environment["packages"].get("torch")),
        python=".".join(str(environment.get("python")).split(".")[:2]),
        code=str(environment["code_hash"])[:8],
        instructions=str(_section(environment, "torch").get("cpu_capability") or ""),
        settings=_settings(run),
    )


def _settings(run: Run) -> str:
    """Older records have none of them."""
    found = _section(run.record["environment"], "settings")
    words = [f"{name}={value}" for name, value in sorted(found.items())]
    given, in_force = run.record["strategy"]["threads_per_rank"], _section(run.record["environment"], "torch")
    if (threads := in_force.get("num_threads")) is not None and threads != given:
        words.append(f"threads={threads}")
    return printable(" ".join(words))


def _section(environment: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = environment.get(key)
    return section if isinstance(section, Mapping) else {}


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Put repeats together, in the order of their first runs; the same groups in whatever order the runs come."""
    together: dict[tuple[str, Conditions], list[Run]] = {}
    for run in runs:
        together.setdefault((run.record["group_hash"], conditions_of(run)), []).append(run)
    groups = []
    for (_, conditions), repeats in together.items():
        repeats.sort(key=lambda run: (run.record["seed"], str(run.path)))
        config = {key: value for key, value in repeats[0].config.items() if key != "seed"}
        config[EXPERIMENT] = " and ".join(sorted({str(run.record["config"].get("experiment_name")) for run in repeats}))
        groups.append(Group(tuple(repeats), config, conditions))
    if len({group.config[EXPERIMENT] for group in groups}) == 1:  # nothing that tells one from another
        groups = [replace(each, config={k: v for k, v in each.config.items() if k != EXPERIMENT}) for each in groups]
    labels = labels_of(groups)
    named = [replace(group, label=label) for group, label in zip(groups, labels, strict=True)]
    return sorted(named, key=lambda group: _natural(group.label))


def set_by_experiment(groups: Sequence[Group]) -> set[str]:
    """The keys that have one value in each experiment: where several are compared, those differ with the experiment."""
    by_experiment: dict[str, list[Group]] = {}
    for group in groups:
        by_experiment.setdefault(group.config.get(EXPERIMENT, ""), []).append(group)
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


def axes(groups: Sequence[Group]) -> list[str]:
    """The keys in which the groups differ; a config group stands for all of its keys where its class differs, and an
    experiment for what it sets."""
    keys = dict.fromkeys(key for group in groups for key in group.config)
    explained = set_by_experiment(groups)
    keys = dict.fromkeys(key for key in keys if key not in explained)
    differing = [key for key in keys if len({repr(group.config.get(key, _ABSENT)) for group in groups}) > 1]
    whole = [name for name in CONFIG_GROUPS if f"{name}._target_" in differing]
    found = dict.fromkeys(next((name for name in whole if key.startswith(f"{name}.")), key) for key in differing)
    # Settings of DDP that a plain process has none of don't tell groups apart by themselves.
    return [key for key in found if key in whole or len({repr(g.config[key]) for g in groups if key in g.config}) > 1]


def value_of(group: Group, key: str, digits: int | None = _DIGITS) -> str:
    """A group's value of one of the `axes`, for people.

    Args:
        digits: that a number with many more is rounded to; None: as it is.
    """
    if key == "device":
        return str(group.first["device"]["used"])
    if key in ("model", "dataset"):
        return printable(str(group.first[key]["name"]))
    if key in CONFIG_GROUPS:
        return str(group.config.get(f"{key}._target_")).rpartition(".")[2].lower()
    value = group.config.get(key)
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, float) and digits is not None and len(text) > 2 * digits:  # drawn from a range
        text = f"{value:.{digits}g}"
    if len(text) > _LONGEST_VALUE:
        text = f"{text[: _LONGEST_VALUE - 10]}...{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    return printable(text)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, the whole of it where two would be the same."""
    short = {key: _SHORT.get(key, key.rpartition(".")[2]) for key in keys}
    return {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}


def labels_of(groups: Sequence[Group]) -> list[str]:
    """What tells each group from the others, like `ws=2 batch_size=64`; with its conditions where these differ."""
    if len(groups) == 1:
        return [f"{groups[0].first['model']['name']} on {groups[0].first['dataset']['name']}"]
    names = short_names(axes(groups))
    labels: list[str] = []
    for digits in (_DIGITS, None):
        if len(set(labels)) == len(groups):
            break
        labels = [_label(group, names, digits) for group in groups]
    for condition in CONDITIONS:
        if len({getattr(group.conditions, condition) for group in groups}) > 1:
            short = 8 if condition == "checksum" else 40
            labels = [
                f"{label} {condition}={getattr(group.conditions, condition)[:short]}".strip()
                for label, group in zip(labels, groups, strict=True)
            ]
    return labels


def _label(group: Group, names: Mapping[str, str], digits: int | None) -> str:
    parts = [f"{name}={value_of(group, key, digits)}" for key, name in names.items() if _has(group, key)]
    return " ".join([*parts, *(["ddp"] if group.world_size == 1 and not group.is_plain else [])])


def groups_table(groups: Sequence[Group], target_accuracy: float | None = None) -> pd.DataFrame:
    """One row per group: repeats, medians, spread between and within repeats, extremes; None where not measured."""
    rows = []
    for group in groups:
        row: dict[str, Any] = {"group": group.label, "num_repeats": len(group.runs)}
        row["seeds"] = " ".join(str(run.record["seed"]) for run in group.runs)
        row |= {"device": group.first["device"]["used"], "model": group.first["model"]["name"]}
        row |= {"dataset": group.first["dataset"]["name"], "world_size": group.world_size}
        row |= {"threads_per_rank": group.first["strategy"]["threads_per_rank"]}
        row |= {"global_batch_size": group.first["batch"]["global_batch_size"]}
        row |= {"precision": group.first["device"]["precision"]}
        for name, summary in (("epoch_time_s", group.epoch_time_s), ("samples_per_s", group.samples_per_s)):
            row |= {name: summary.median, f"{name}_between": summary.between, f"{name}_within": summary.within}
            row |= {f"{name}_min": summary.low, f"{name}_max": summary.high}
        for key in ("test_accuracy", "val_accuracy", "train_accuracy", "test_loss", "val_loss", "train_loss"):
            values = group.values("result", key)
            row[key], row[f"{key}_between"] = median_and_deviation(values) if values else (None, None)
        row |= dict.fromkeys(("target_accuracy", "num_reached", "time_to_accuracy_s"))
        if (time := reached(group, target_accuracy)) is not None:
            row |= asdict(time)
        for section, key in _MEDIANS:
            row[f"bare_loop_{key}" if section == "bare_loop" else key] = group.median(section, key)
        row["quality"] = group.quality
        row["remarks"] = "; ".join(group.remarks)
        rows.append(row)
    return pd.DataFrame(rows)


_MEDIANS = (
    ("timing", "total_train_s"), ("timing", "startup_s"), ("resources", "peak_rss_bytes"),
    ("resources", "peak_device_memory_bytes"), ("resources", "cpu_percent"), ("resources", "energy_joules"),
    ("resources", "energy_joules_per_1000_samples"), *(("breakdown", f"{part}_s") for part in PARTS),
    ("breakdown", "step_s"), ("breakdown", "step_p50_s"), ("breakdown", "step_p95_s"), ("breakdown", "step_p99_s"),
    ("peak", "achieved_flop_per_s"), ("peak", "matmul_flop_per_s"), ("peak", "achieved_fraction"),
    ("bare_loop", "overhead"), ("bare_loop", "overhead_s_per_step"),
)  # fmt: skip


@dataclass(frozen=True)
class Reached:
    """How long a group took to a validation accuracy.

    Attributes:
        target_accuracy: a share of 1.
        num_reached: repeats that reached it.
        time_to_accuracy_s: the median of those that did; None: none did.
    """

    target_accuracy: float
    num_reached: int
    time_to_accuracy_s: float | None


def reached(group: Group, target: float | None) -> Reached | None:
    """The time to a target accuracy (given, or the runs' own); None: there is no target."""
    target = target if target is not None else group.first["config"]["measure"].get("target_accuracy")
    if target is None:
        return None
    times = [time for time in group.times_to(target) if time is not None]
    return Reached(target, len(times), float(np.median(times)) if times else None)


def _has(group: Group, key: str) -> bool:
    return key in group.config or key in CONFIG_GROUPS or key == "device"


def _natural(label: str) -> list[tuple[str, float, str]]:
    parts = []
    for part in label.split():
        name, _, value = part.partition("=")
        try:
            parts.append((name, float(value), ""))
        except ValueError:
            parts.append((name, float("inf"), value))
    return parts
