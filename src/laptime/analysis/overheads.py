"""Computes overheads: the time of a step beyond its ideal time, by cause."""

from dataclasses import dataclass
from typing import Literal

from laptime.analysis.group import Group

# In strong scaling, the global batch size is fixed. In weak scaling, the batch size per rank is fixed.
ScalingKind = Literal["strong", "weak"]


@dataclass(frozen=True)
class Overheads:
    """Seconds per step by cause; None: a measurement that the figure needs is missing.

    Attributes:
        ideal: the baseline's step, in strong scaling divided by the number of ranks.
        contention: how much longer a step without synchronization takes than the baseline's, oversubscription excluded.
        oversubscription: the minimum cost of time-sharing if ranks have more threads than cores.
        communication: the cost of synchronization, straggler delay excluded. In trainings that Laptime only timed, it
            is the time that a step of the warm-up lap waits for gradients of other ranks, straggler delay included.
        straggler_delay: the time that the other ranks wait for the slowest one, which is its step without
            synchronization minus the median rank's.
        rest: the time that these causes don't explain. It may be negative, because they are measured in separate steps.
        step: the step of the timed epochs.
    """

    ideal: float | None = None
    contention: float | None = None
    oversubscription: float | None = None
    communication: float | None = None
    straggler_delay: float | None = None
    rest: float | None = None
    step: float | None = None


def overheads_of(group: Group, baseline: Group | None, kind: ScalingKind) -> Overheads:
    """Split a group's step into its ideal time and the overheads."""
    step = _step_s(group)
    base_step = None if baseline is None else _step_s(baseline)
    if baseline is None or step is None or base_step is None:
        return Overheads(step=step)
    num_parts = group.world_size if kind == "strong" else 1
    ideal = base_step / num_parts
    if group is baseline:
        return Overheads(ideal, 0.0, 0.0, 0.0, 0.0, 0.0, step)
    no_sync_step = group.median("contention", "no_sync_step_s")
    base_no_sync_step = baseline.median("contention", "no_sync_step_s")
    sync_cost, relative_delay = group.median("communication", "cost_s"), group.median("contention", "straggler_delay")
    contention = oversubscription = communication = straggler_delay = rest = None
    if no_sync_step is not None and base_no_sync_step is not None:
        slowdown = no_sync_step - base_no_sync_step / num_parts
        strategy, cores = group.first.strategy, group.first.environment.num_usable_cores
        threads_per_core = group.world_size * strategy.threads_per_rank / cores
        time_sharing = base_no_sync_step / num_parts * (threads_per_core - 1) if strategy.oversubscribed else 0.0
        oversubscription = min(time_sharing, max(slowdown, 0.0))
        contention = slowdown - oversubscription
    if sync_cost is not None and no_sync_step is not None and relative_delay is not None:
        straggler_delay = min(no_sync_step * relative_delay, max(sync_cost, 0.0))
        communication = sync_cost - straggler_delay
    if communication is None and not group.first.record.is_laptime_training:
        communication = group.median("communication", "exposed_s")
    causes = (contention, oversubscription, communication, straggler_delay)
    measured = [seconds for seconds in causes if seconds is not None]
    if len(measured) == len(causes):
        rest = step - ideal - sum(measured)
    return Overheads(ideal, contention, oversubscription, communication, straggler_delay, rest, step)


def _step_s(group: Group) -> float | None:
    steps_per_s = group.median("timing", "steps_per_s")
    return 1 / steps_per_s if steps_per_s else None
