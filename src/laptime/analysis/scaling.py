"""What more ranks bring: for groups that differ in the number of ranks alone, speedup, efficiency, fits, projections,
and where the rest went."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from laptime.analysis.groups import CONDITIONS, Group
from laptime.analysis.laws import Fit, efficiency, fit, karp_flatt
from laptime.analysis.results import agreement
from laptime.analysis.statistics import Interval, ratio, ratio_interval, relative_error
from laptime.errors import UserError
from laptime.record import files as record
from laptime.text import printable

# What may differ between the runs of one scaling family, said in the row where it does.
_SOFT = ("strategy.threads_per_rank",)
OF_DDP = tuple(f"strategy.{key}" for key in record.OF_DDP)


@dataclass(frozen=True)
class Point:
    """One number of ranks against the baseline.

    Attributes:
        group: its runs.
        speedup: samples_per_s over the plain single process's; None: there is none.
        speedup_interval: bootstrap, over repeats.
        speedup_over_ddp: over one rank with DDP, with its interval; None: not measured.
        losses: seconds of a step by cause, None where it was not measured; with `ideal` and `rest` they add up to it.
        remarks: what differs from the baseline or is to be known.
    """

    group: Group
    speedup: float | None
    speedup_interval: Interval | None
    speedup_over_ddp: float | None
    ddp_interval: Interval | None
    losses: dict[str, float | None]
    agrees: str
    remarks: tuple[str, ...]

    @property
    def world_size(self) -> int:
        return self.group.world_size


@dataclass(frozen=True)
class Family:
    """Groups that differ in the number of ranks alone, by number of ranks.

    Attributes:
        name: what they have in common, short.
        kind: strong (the global batch is fixed) or weak (each rank's is).
        baseline: the plain single process; None: missing.
        one_rank_ddp: a single rank with DDP around it; None: not measured.
        points: with the baseline as the first.
        fits: amdahl and usl; empty where fewer than three world sizes were measured.
    """

    name: str
    kind: str
    baseline: Group | None
    one_rank_ddp: Group | None
    points: tuple[Point, ...]
    fits: dict[str, Fit] = field(default_factory=dict)

    @property
    def world_sizes(self) -> list[int]:
        return [point.world_size for point in self.points]

    @property
    def missing(self) -> str | None:
        """What is missing for a speedup, and the command that would give it."""
        if self.baseline is not None:
            return None
        command = _with_one_rank(self.points[0].group.first["command"])
        what = f"no run with one rank to compare {self.points[-1].group.label} with"
        return f"{what}. Run: {command}" if command else what + "."


def families(groups: Sequence[Group]) -> list[Family]:
    """All families of more than one number of ranks, or of several ranks without a baseline to compare with.

    Groups on other machines or with other data are other families: no speedup would mean anything.
    """
    by_work: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        by_work.setdefault(_work(group), []).append(group)
    found = []
    for alike in by_work.values():
        scaled: dict[tuple[Any, ...], list[Group]] = {}
        for group in alike:
            if group.world_size > 1:
                scaled.setdefault(_way(group), []).append(group)
        for members in scaled.values():
            baseline = _closest([group for group in alike if group.is_plain], members[0])
            wrapped = _closest(
                [group for group in alike if group.world_size == 1 and not group.is_plain], members[0], with_ddp=True
            )
            found.append(_family(members, baseline, wrapped))
    return found


def _family(members: list[Group], baseline: Group | None, wrapped: Group | None) -> Family:
    members = sorted(members, key=lambda group: group.world_size)
    kind = "strong" if members[0].first["batch"]["scope"] == "global" else "weak"
    points = [_point(group, baseline, wrapped, kind) for group in ([baseline] if baseline else []) + members]
    fits = {}
    if baseline is not None:
        reference = baseline.samples_per_s.median
        sizes = [point.world_size for point in points for _ in point.group.runs]
        speedups = [value / reference for point in points for value in point.group.throughputs]
        error = relative_error(baseline.seconds_per_sample)
        fits = {name: found for name in ("amdahl", "usl") if (found := fit(name, sizes, speedups, error)) is not None}
    shared = [part for part in members[0].label.split() if not part.startswith(("ws=", "strategy.world_size="))]
    return Family(" ".join(shared), kind, baseline, wrapped, tuple(points), fits)


def _point(group: Group, baseline: Group | None, wrapped: Group | None, kind: str) -> Point:
    own = group.seconds_per_sample
    other = None if group is baseline else baseline  # to be compared with
    return Point(
        group=group,
        speedup=None if baseline is None else ratio(baseline.seconds_per_sample, own),
        speedup_interval=None if other is None else ratio_interval(other.seconds_per_sample, own),
        speedup_over_ddp=None if wrapped is None else ratio(wrapped.seconds_per_sample, own),
        ddp_interval=None if wrapped is None else ratio_interval(wrapped.seconds_per_sample, own),
        losses=losses(group, baseline, kind),
        agrees="" if other is None else agreement(group, other),
        remarks=(*group.remarks, *([] if other is None else unlike(group, other))),
    )


def losses(group: Group, baseline: Group | None, kind: str) -> dict[str, float | None]:
    """Where a step's time goes beyond the ideal one, in seconds per step.

    `ideal` is the baseline's step (strong scaling: that over the number of ranks). `contention` is how much longer
    ranks take without synchronisation than the baseline does; where they are oversubscribed, what sharing cores by time
    costs at least is `oversubscription` instead. `straggling` is how much longer the slowest rank takes for that than
    the median one, which the others wait for. `communication` is the rest of what synchronisation costs. These come
    from separate steps; `rest` is what they leave unexplained of the epochs' own steps, and may be negative.

    Returns:
        ideal, contention, oversubscription, communication, straggling, rest and step; None where something that it
        needs was not measured.
    """
    names = ("ideal", "contention", "oversubscription", "communication", "straggling", "rest", "step")
    parts: dict[str, float | None] = dict.fromkeys(names)
    step = parts["step"] = _step_s(group)
    base_step = _step_s(baseline) if baseline is not None else None
    if baseline is None or step is None or base_step is None:
        return parts
    share = group.world_size if kind == "strong" else 1
    ideal = parts["ideal"] = base_step / share
    if group is baseline:
        return parts | dict.fromkeys(names[1:-1], 0.0)
    own_pace, base_pace = (each.median("contention", "no_sync_step_s") for each in (group, baseline))
    if own_pace is not None and base_pace is not None:
        slower = own_pace - base_pace / share
        strategy, cores = group.first["strategy"], group.first["environment"]["num_usable_cores"]
        crowding = group.world_size * strategy["threads_per_rank"] / cores
        by_time = base_pace / share * (crowding - 1) if strategy["oversubscribed"] else 0.0
        oversubscription = min(by_time, max(slower, 0.0))
        parts |= {"oversubscription": oversubscription, "contention": slower - oversubscription}
    cost, behind = group.median("communication", "cost_s"), group.median("contention", "straggling")
    if cost is not None and own_pace is not None and behind is not None:
        straggling = min(own_pace * behind, max(cost, 0.0))
        parts |= {"straggling": straggling, "communication": cost - straggling}
    known = [part for name in names[1:5] if (part := parts[name]) is not None]
    if len(known) == 4:
        parts["rest"] = step - ideal - sum(known)
    return parts


@dataclass(frozen=True)
class Projection:
    """A speedup that was not measured; its interval is None where it can't be told."""

    world_size: int
    speedup: float
    interval: Interval | None


def projections(family: Family, world_sizes: Sequence[int]) -> list[Projection]:
    """What the fitted universal scalability law expects where nothing was measured; empty without a fit."""
    law = family.fits.get("usl")
    if law is None or not law.describes:
        return []
    sizes = sorted(set(world_sizes) - set(family.world_sizes))
    return [Projection(size, float(law.predict([size])[0]), law.interval(size)) for size in sizes]


_COLUMNS = (
    "family", "scaling", "group", "world_size", "projected", "num_repeats", "samples_per_s", "epoch_time_s", "expected",
    "speedup", "speedup_low", "speedup_high", "efficiency", "efficiency_low", "efficiency_high", "serial_fraction",
    "speedup_over_one_rank_ddp", "speedup_over_one_rank_ddp_low", "speedup_over_one_rank_ddp_high", "ideal_s_per_step",
    "contention_s_per_step", "oversubscription_s_per_step", "communication_s_per_step", "straggling_s_per_step",
    "rest_s_per_step", "step_s_per_step", "results", "remarks",
)  # fmt: skip


def scaling_table(found: Sequence[Family], project: Sequence[int] = ()) -> pd.DataFrame:
    """One row per family and number of ranks, projected ones marked; intervals None with one repeat."""
    rows: list[dict[str, Any]] = []
    for family in found:
        for point in family.points:
            p, group = point.world_size, point.group
            row: dict[str, Any] = {"family": family.name, "scaling": family.kind, "group": group.label}
            row |= {"world_size": p, "projected": False, "num_repeats": len(group.runs)}
            row |= {"samples_per_s": group.samples_per_s.median, "epoch_time_s": group.epoch_time_s.median}
            row |= {"expected": float(p), "speedup": point.speedup} | bounds("speedup", point.speedup_interval)
            row["efficiency"] = None if point.speedup is None else efficiency(point.speedup, p)
            row |= bounds("efficiency", point.speedup_interval, 1 / p)
            row["serial_fraction"] = None if point.speedup is None else karp_flatt(point.speedup, p)
            row["speedup_over_one_rank_ddp"] = point.speedup_over_ddp
            row |= bounds("speedup_over_one_rank_ddp", point.ddp_interval)
            row |= {f"{name}_s_per_step": value for name, value in point.losses.items()}
            row["results"], row["remarks"] = point.agrees, "; ".join(point.remarks)
            rows.append(row)
        for projected in projections(family, project):
            p = projected.world_size
            row = {"family": family.name, "scaling": family.kind, "world_size": p, "projected": True}
            row |= {"expected": float(p), "speedup": projected.speedup} | bounds("speedup", projected.interval)
            row |= {"efficiency": efficiency(projected.speedup, p)} | bounds("efficiency", projected.interval, 1 / p)
            rows.append(row | {"remarks": "projected, not measured"})
    return pd.DataFrame(rows, columns=list(_COLUMNS))


def unlike(group: Group, baseline: Group) -> list[str]:
    """What differs from the baseline beside what is compared."""
    found = []
    for key in _SOFT:
        here, there = group.config.get(key), baseline.config.get(key)
        if here != there:
            found.append(f"{key.rpartition('.')[2]} {here}, baseline {there}")
    for name in CONDITIONS:
        here, there = getattr(group.conditions, name), getattr(baseline.conditions, name)
        if here != there:
            found.append(f"{'data checksum' if name == 'checksum' else name} {here[:60]}, baseline {there[:60]}")
    if group.conditions.machine == baseline.conditions.machine and group.hosts != baseline.hosts:
        found.append("on another host than the baseline")
    return found


def _work(group: Group) -> tuple[Any, ...]:
    """What must be equal for a speedup to mean something."""
    left_out = {"strategy.world_size", *_SOFT, *OF_DDP}
    work = tuple(sorted((key, repr(value)) for key, value in group.config.items() if key not in left_out))
    return work, group.conditions.work


def _way(group: Group) -> tuple[Any, ...]:
    """What is equal within a family besides: how the ranks are run and by which code."""
    left_out = ("strategy.wrap_single_rank",)
    keys = [key for key in (*_SOFT, *OF_DDP) if key not in left_out]
    return tuple(repr(group.config.get(key)) for key in keys), group.conditions.torch, group.conditions.code


def _closest(candidates: Sequence[Group], group: Group, with_ddp: bool = False) -> Group | None:
    """The candidate that differs from the group in the fewest things, of those the one with most repeats."""
    keys = [*_SOFT, *(key for key in OF_DDP if with_ddp and key != "strategy.wrap_single_rank")]

    def distance(candidate: Group) -> tuple[int, int, str]:
        differing = sum(candidate.config.get(key) != group.config.get(key) for key in keys)
        differing += candidate.conditions.torch != group.conditions.torch
        differing += candidate.conditions.code != group.conditions.code
        return differing, -len(candidate.runs), candidate.label

    return min(candidates, key=distance, default=None)


def _step_s(group: Group) -> float | None:
    steps_per_s = group.median("timing", "steps_per_s")
    return 1 / steps_per_s if steps_per_s else None


def bounds(name: str, interval: Interval | None, scale: float = 1.0) -> dict[str, float | None]:
    """Two columns of a table, None without an interval."""
    low, high = (interval.low * scale, interval.high * scale) if interval else (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _with_one_rank(command: list[str]) -> str:
    """The command with one rank instead of those it had."""
    if not command:
        return ""
    key = "strategy.world_size="
    # Where the runs before lie, there is no room for new ones.
    replaced = (key, "hydra.sweep.dir=", "hydra.run.dir=", "sweep.resume=")
    kept = [part for part in command if not part.startswith(replaced)]
    return printable(shlex.join([*kept, f"{key}1"]))


_MOST_RANKS = 1_000_000


def parse_world_sizes(text: str) -> list[int]:
    """The numbers of ranks in a list like 8,16.

    Raises:
        UserError: one is no positive whole number.
    """
    sizes = [part.strip() for part in text.split(",") if part.strip()]
    wrong = next((part for part in sizes if not part.isdecimal() or int(part) < 1), None)
    if wrong is not None:
        raise UserError(f"--project {text}: {wrong} is no number of ranks. Write for instance --project 8,16.")
    large = next((part for part in sizes if int(part) > _MOST_RANKS), None)
    if large is not None:
        raise UserError(f"--project {text}: {large} ranks are more than {_MOST_RANKS:,}.")
    return [int(part) for part in sizes]
