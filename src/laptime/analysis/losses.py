"""Where the time of a step goes that more ranks do not save."""

from dataclasses import dataclass
from typing import Literal

from laptime.analysis.group import Group

# strong: the global batch is fixed; weak: each rank's is.
Kind = Literal["strong", "weak"]


@dataclass(frozen=True)
class Losses:
    """Seconds of a step by cause; None where something that it needs was not measured.

    Attributes:
        ideal: the baseline's step (strong scaling: that over the number of ranks).
        contention: how much longer ranks take without synchronisation than the baseline does.
        oversubscription: where ranks have more threads than cores, what sharing cores by time costs at least; it is not
            part of contention.
        communication: what synchronisation costs beside straggling. Of trainings that are not Laptime's own: what a
            step of the warm-up lap waits for gradients of other ranks, straggling included.
        straggling: how much longer the slowest rank takes without synchronisation than the median one, which the
            others wait for.
        rest: what these leave unexplained of the epochs' own steps, as they come from separate steps; may be negative.
        step: the epochs' own.
    """

    ideal: float | None = None
    contention: float | None = None
    oversubscription: float | None = None
    communication: float | None = None
    straggling: float | None = None
    rest: float | None = None
    step: float | None = None


def losses_of(group: Group, baseline: Group | None, kind: Kind) -> Losses:
    """Where a step's time goes beyond the ideal one."""
    step = _step_s(group)
    base_step = None if baseline is None else _step_s(baseline)
    if baseline is None or step is None or base_step is None:
        return Losses(step=step)
    share = group.world_size if kind == "strong" else 1
    ideal = base_step / share
    if group is baseline:
        return Losses(ideal, 0.0, 0.0, 0.0, 0.0, 0.0, step)
    own_pace, base_pace = (each.median("contention", "no_sync_step_s") for each in (group, baseline))
    cost, behind = group.median("communication", "cost_s"), group.median("contention", "straggler_delay")
    contention = oversubscription = communication = straggling = rest = None
    if own_pace is not None and base_pace is not None:
        slower = own_pace - base_pace / share
        strategy, cores = group.first.strategy, group.first.environment.num_usable_cores
        crowding = group.world_size * strategy.threads_per_rank / cores
        by_time = base_pace / share * (crowding - 1) if strategy.oversubscribed else 0.0
        oversubscription = min(by_time, max(slower, 0.0))
        contention = slower - oversubscription
    if cost is not None and own_pace is not None and behind is not None:
        straggling = min(own_pace * behind, max(cost, 0.0))
        communication = cost - straggling
    if communication is None and not group.first.record.is_laptime_training:
        communication = group.median("communication", "exposed_s")
    known = [each for each in (contention, oversubscription, communication, straggling) if each is not None]
    if len(known) == 4:
        rest = step - ideal - sum(known)
    return Losses(ideal, contention, oversubscription, communication, straggling, rest, step)


def _step_s(group: Group) -> float | None:
    steps_per_s = group.median("timing", "steps_per_s")
    return 1 / steps_per_s if steps_per_s else None
