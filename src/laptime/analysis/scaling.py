"""Analyzes scaling over the number of ranks: speedup, efficiency, overheads, fitted laws and projections."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field

from laptime.analysis.group import Group
from laptime.analysis.labels import without_ranks
from laptime.analysis.laws import Fit, fit
from laptime.analysis.mismatch import MAY_DIFFER, Mismatch, differing_conditions
from laptime.analysis.overheads import Overheads, ScalingKind, overheads_of
from laptime.analysis.results import Agreement, agreement
from laptime.analysis.statistics import Interval, ratio, ratio_interval, relative_error
from laptime.errors import UserError
from laptime.record import files as record
from laptime.text import escape_control_chars

DDP_KEYS = tuple(f"strategy.{key}" for key in record.DDP_KEYS)


@dataclass(frozen=True)
class Point:
    """One number of ranks, compared with the baseline.

    Attributes:
        group: the group with this number of ranks.
        speedup: samples_per_s divided by that of a plain single process; None: there is no such run.
        speedup_interval: bootstrap interval of `speedup` over repeats.
        speedup_over_ddp: speedup over one rank with DDP; None: not measured.
        ddp_interval: bootstrap interval of `speedup_over_ddp`.
        overheads: the time of a step by cause.
        agreement: whether the group's scores agree with the baseline's; None for the baseline itself, or without one.
        mismatches: other differences from the baseline.
    """

    group: Group
    speedup: float | None
    speedup_interval: Interval | None
    speedup_over_ddp: float | None
    ddp_interval: Interval | None
    overheads: Overheads
    agreement: Agreement | None
    mismatches: tuple[Mismatch, ...]

    @property
    def world_size(self) -> int:
        return self.group.world_size


@dataclass(frozen=True)
class Family:
    """Groups that differ only in the number of ranks.

    Attributes:
        name: short label of the settings that they have in common.
        kind: strong (fixed global batch size) or weak (fixed batch size per rank).
        baseline: the plain single process; None: missing.
        one_rank_ddp: a single rank wrapped in DDP; None: not measured.
        points: the points in the order of their number of ranks, the baseline first.
        fits: the fits of amdahl and usl; empty: fewer than three world sizes were measured.
    """

    name: str
    kind: ScalingKind
    baseline: Group | None
    one_rank_ddp: Group | None
    points: tuple[Point, ...]
    fits: dict[str, Fit] = field(default_factory=dict)

    @property
    def world_sizes(self) -> list[int]:
        return [point.world_size for point in self.points]


def families(groups: Sequence[Group]) -> list[Family]:
    """Return all scaling families: sets of groups with several numbers of ranks, or with several ranks and no baseline.

    Groups on different machines or with different data are in different families, because speedups between them would
    mean nothing.
    """
    by_work: dict[tuple[object, ...], list[Group]] = {}
    for group in groups:
        by_work.setdefault(_workload(group), []).append(group)
    families = []
    for comparable in by_work.values():
        scaled: dict[tuple[object, ...], list[Group]] = {}
        for group in comparable:
            if group.world_size > 1:
                scaled.setdefault(_execution(group), []).append(group)
        for members in scaled.values():
            baseline = _closest([group for group in comparable if group.is_plain], members[0])
            wrapped = _closest(
                [g for g in comparable if g.world_size == 1 and not g.is_plain], members[0], with_ddp=True
            )
            families.append(_family(members, baseline, wrapped))
    return families


def _family(members: list[Group], baseline: Group | None, wrapped: Group | None) -> Family:
    members = sorted(members, key=lambda group: group.world_size)
    kind: ScalingKind = "strong" if members[0].first.batch.scope == "global" else "weak"
    points = [_point(group, baseline, wrapped, kind) for group in ([baseline] if baseline else []) + members]
    fits = {}
    if baseline is not None:
        reference = baseline.samples_per_s.median
        sizes = [point.world_size for point in points for _ in point.group.runs]
        speedups = [value / reference for point in points for value in point.group.throughputs]
        error = relative_error(baseline.seconds_per_sample)
        fits = {name: law for name in ("amdahl", "usl") if (law := fit(name, sizes, speedups, error)) is not None}
    return Family(without_ranks(members[0].label), kind, baseline, wrapped, tuple(points), fits)


def _point(group: Group, baseline: Group | None, wrapped: Group | None, kind: ScalingKind) -> Point:
    times = group.seconds_per_sample
    reference = None if group is baseline else baseline
    return Point(
        group=group,
        speedup=None if baseline is None else ratio(baseline.seconds_per_sample, times),
        speedup_interval=None if reference is None else ratio_interval(reference.seconds_per_sample, times),
        speedup_over_ddp=None if wrapped is None else ratio(wrapped.seconds_per_sample, times),
        ddp_interval=None if wrapped is None else ratio_interval(wrapped.seconds_per_sample, times),
        overheads=overheads_of(group, baseline, kind),
        agreement=None if reference is None else agreement(group, reference),
        mismatches=() if reference is None else differing_conditions(group, reference),
    )


@dataclass(frozen=True)
class Projection:
    """A predicted speedup. `interval` is None where the fit gives none."""

    world_size: int
    speedup: float
    interval: Interval | None


def projections(family: Family, world_sizes: Sequence[int]) -> list[Projection]:
    """Return the universal scalability law's speedups for unmeasured world sizes; empty: there is no good fit."""
    law = family.fits.get("usl")
    if law is None or not law.is_good_fit:
        return []
    sizes = sorted(set(world_sizes) - set(family.world_sizes))
    return [Projection(size, float(law.predict([size])[0]), law.interval(size)) for size in sizes]


def _workload(group: Group) -> tuple[object, ...]:
    """Return the settings and conditions that must be equal for a speedup to be meaningful."""
    left_out = {"strategy.world_size", *MAY_DIFFER, *DDP_KEYS}
    work = tuple(sorted((key, repr(value)) for key, value in group.config.items() if key not in left_out))
    return work, group.conditions.must_match


def _execution(group: Group) -> tuple[object, ...]:
    """Return what else is equal within a family: how the ranks run, the code, the torch version and the lap's unit."""
    left_out = ("strategy.wrap_single_rank",)
    keys = [key for key in (*MAY_DIFFER, *DDP_KEYS) if key not in left_out]
    conditions = group.conditions
    return tuple(repr(group.config.get(key)) for key in keys), conditions.torch, conditions.code, conditions.lap


def _closest(candidates: Sequence[Group], group: Group, with_ddp: bool = False) -> Group | None:
    """Return the candidate with the fewest differences from the group; among equals, the one with the most repeats."""
    keys = [*MAY_DIFFER, *(key for key in DDP_KEYS if with_ddp and key != "strategy.wrap_single_rank")]

    def distance(candidate: Group) -> tuple[int, int, str]:
        differing = sum(candidate.config.get(key) != group.config.get(key) for key in keys)
        differing += candidate.conditions.torch != group.conditions.torch
        differing += candidate.conditions.code != group.conditions.code
        differing += candidate.conditions.lap != group.conditions.lap
        return differing, -len(candidate.runs), candidate.label

    return min(candidates, key=distance, default=None)


def command_with_one_rank(command: list[str]) -> str:
    """Return the command with strategy.world_size=1."""
    if not command:
        return ""
    key = "strategy.world_size="
    # The directory of the earlier runs can't take new ones.
    dropped = (key, "hydra.sweep.dir=", "hydra.run.dir=", "sweep.resume=")
    kept = [part for part in command if not part.startswith(dropped)]
    return escape_control_chars(shlex.join([*kept, f"{key}1"]))


_MAX_RANKS = 1_000_000


def parse_world_sizes(text: str) -> list[int]:
    """Return the numbers of ranks in a list like 8,16.

    Raises:
        UserError: a number is not a positive integer.
    """
    sizes = [part.strip() for part in text.split(",") if part.strip()]
    wrong = next((part for part in sizes if not part.isdecimal() or int(part) < 1), None)
    if wrong is not None:
        raise UserError(f"--project {text}: {wrong} is not a positive integer. Example: --project 8,16.")
    large = next((part for part in sizes if int(part) > _MAX_RANKS), None)
    if large is not None:
        raise UserError(f"--project {text}: {large} is more than the maximum of {_MAX_RANKS:,} ranks.")
    return [int(part) for part in sizes]
