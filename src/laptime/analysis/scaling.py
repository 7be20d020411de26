"""What more ranks bring: for groups that differ in the number of ranks alone, speedup, efficiency, fits, projections,
and where the rest went."""

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
    """One number of ranks against the baseline.

    Attributes:
        group: its runs.
        speedup: samples_per_s over the plain single process's; None: there is none.
        speedup_interval: bootstrap, over repeats.
        speedup_over_ddp: over one rank with DDP, with its interval; None: not measured.
        overheads: where the time of a step goes.
        agreement: whether it learns the same as the baseline; None for the baseline itself, or without one.
        mismatches: what differs from the baseline besides.
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
    kind: ScalingKind
    baseline: Group | None
    one_rank_ddp: Group | None
    points: tuple[Point, ...]
    fits: dict[str, Fit] = field(default_factory=dict)

    @property
    def world_sizes(self) -> list[int]:
        return [point.world_size for point in self.points]


def families(groups: Sequence[Group]) -> list[Family]:
    """All families of more than one number of ranks, or of several ranks without a baseline to compare with.

    Groups on other machines or with other data are other families: no speedup would mean anything.
    """
    by_work: dict[tuple[object, ...], list[Group]] = {}
    for group in groups:
        by_work.setdefault(_workload(group), []).append(group)
    found = []
    for alike in by_work.values():
        scaled: dict[tuple[object, ...], list[Group]] = {}
        for group in alike:
            if group.world_size > 1:
                scaled.setdefault(_execution(group), []).append(group)
        for members in scaled.values():
            baseline = _closest([group for group in alike if group.is_plain], members[0])
            wrapped = _closest(
                [group for group in alike if group.world_size == 1 and not group.is_plain], members[0], with_ddp=True
            )
            found.append(_family(members, baseline, wrapped))
    return found


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
        fits = {name: found for name in ("amdahl", "usl") if (found := fit(name, sizes, speedups, error)) is not None}
    return Family(without_ranks(members[0].label), kind, baseline, wrapped, tuple(points), fits)


def _point(group: Group, baseline: Group | None, wrapped: Group | None, kind: ScalingKind) -> Point:
    own = group.seconds_per_sample
    other = None if group is baseline else baseline  # to be compared with
    return Point(
        group=group,
        speedup=None if baseline is None else ratio(baseline.seconds_per_sample, own),
        speedup_interval=None if other is None else ratio_interval(other.seconds_per_sample, own),
        speedup_over_ddp=None if wrapped is None else ratio(wrapped.seconds_per_sample, own),
        ddp_interval=None if wrapped is None else ratio_interval(wrapped.seconds_per_sample, own),
        overheads=overheads_of(group, baseline, kind),
        agreement=None if other is None else agreement(group, other),
        mismatches=() if other is None else differing_conditions(group, other),
    )


@dataclass(frozen=True)
class Projection:
    """A speedup that was not measured; its interval is None where it can't be told."""

    world_size: int
    speedup: float
    interval: Interval | None


def projections(family: Family, world_sizes: Sequence[int]) -> list[Projection]:
    """What the fitted universal scalability law expects where nothing was measured; empty without a fit."""
    law = family.fits.get("usl")
    if law is None or not law.is_good_fit:
        return []
    sizes = sorted(set(world_sizes) - set(family.world_sizes))
    return [Projection(size, float(law.predict([size])[0]), law.interval(size)) for size in sizes]


def _workload(group: Group) -> tuple[object, ...]:
    """What must be equal for a speedup to mean something."""
    left_out = {"strategy.world_size", *MAY_DIFFER, *DDP_KEYS}
    work = tuple(sorted((key, repr(value)) for key, value in group.config.items() if key not in left_out))
    return work, group.conditions.must_match


def _execution(group: Group) -> tuple[object, ...]:
    """What is equal within a family besides: how the ranks are run and by which code, and what is timed as a lap."""
    left_out = ("strategy.wrap_single_rank",)
    keys = [key for key in (*MAY_DIFFER, *DDP_KEYS) if key not in left_out]
    conditions = group.conditions
    return tuple(repr(group.config.get(key)) for key in keys), conditions.torch, conditions.code, conditions.lap


def _closest(candidates: Sequence[Group], group: Group, with_ddp: bool = False) -> Group | None:
    """The candidate that differs from the group in the fewest things, of those the one with most repeats."""
    keys = [*MAY_DIFFER, *(key for key in DDP_KEYS if with_ddp and key != "strategy.wrap_single_rank")]

    def distance(candidate: Group) -> tuple[int, int, str]:
        differing = sum(candidate.config.get(key) != group.config.get(key) for key in keys)
        differing += candidate.conditions.torch != group.conditions.torch
        differing += candidate.conditions.code != group.conditions.code
        differing += candidate.conditions.lap != group.conditions.lap
        return differing, -len(candidate.runs), candidate.label

    return min(candidates, key=distance, default=None)


def command_with_one_rank(command: list[str]) -> str:
    """The command with one rank instead of those it had."""
    if not command:
        return ""
    key = "strategy.world_size="
    # Where the runs before lie, there is no room for new ones.
    replaced = (key, "hydra.sweep.dir=", "hydra.run.dir=", "sweep.resume=")
    kept = [part for part in command if not part.startswith(replaced)]
    return escape_control_chars(shlex.join([*kept, f"{key}1"]))


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
