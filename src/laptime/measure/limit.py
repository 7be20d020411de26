"""How near a run came to the limit of its device, and what held it back, in plain words."""

from collections.abc import Sequence

from laptime.measure.peak import Peak
from laptime.record import schema

# Of the fastest matrix product: a network of large products alone gets about there.
_NEAR = 0.7
# No step computes faster than that: it was the product that was slow when it was measured.
_IMPOSSIBLE = 1.1
# A part of the step below this share explains nothing.
_WORTH_NAMING = 0.1


def limit(
    flops_per_sample: int | None,
    samples_per_s: float | None,
    global_batch_size: int,
    peak: Peak,
    breakdown: schema.Breakdown,
    optimizer_bytes: int,
    pipeline: str,
    precision: str,
    disturbances: Sequence[str] = (),
) -> schema.Peak:
    """What a run achieved of what its device can do.

    Args:
        flops_per_sample: floating-point operations of a training step per sample, forward and backward.
        samples_per_s: of all ranks, in the epochs.
        global_batch_size: samples of a step of all ranks.
        peak: of all ranks together.
        breakdown: seconds of a step by part.
        optimizer_bytes: that the optimizers of all ranks read and write in a step.
        pipeline, precision: as the configuration names them: nothing is advised that is so already.
        disturbances: what disturbed the machine while the peak was measured, which is higher then than it seems.

    Returns:
        The section of the record. `achieved_fraction` is of the fastest matrix product; `compute_fraction` the same
        while a step is in its forward and backward pass; `optimizer_bytes_per_s` may be above the fastest copy, where
        weights and state stay in the caches.
    """
    found = schema.Peak(matmul_flop_per_s=peak.matmul_flop_per_s, copy_bytes_per_s=peak.copy_bytes_per_s)
    matmul_flop_per_s = peak.matmul_flop_per_s
    if breakdown.step_s is not None:
        compute_s = (breakdown.forward_s or 0.0) + (breakdown.backward_s or 0.0)
        if flops_per_sample:
            found.compute_fraction = flops_per_sample * global_batch_size / compute_s / matmul_flop_per_s
        if breakdown.optimizer_s:
            found.optimizer_bytes_per_s = optimizer_bytes / breakdown.optimizer_s
    if not flops_per_sample or samples_per_s is None:
        return found
    compute_fraction = found.compute_fraction
    achieved = flops_per_sample * samples_per_s
    fraction = achieved / matmul_flop_per_s
    found.achieved_flop_per_s, found.achieved_fraction = achieved, fraction
    fastest = max(fraction, compute_fraction or 0.0)
    if fastest > _IMPOSSIBLE:
        found.verdict = (
            f"not known: {fastest:.0%} of the fastest matrix product that was found can't be, so something disturbed "
            "that measurement"
        )
        return found
    verdict = f"{'near the limit: ' if fraction >= _NEAR else ''}{fraction:.0%} of the fastest matrix product here"
    if compute_fraction is not None:
        parts = "; ".join(_parts(breakdown, compute_fraction, pipeline, precision))
        verdict = f"{verdict}. Of a step, {parts}" if parts else verdict
    if disturbances:
        verdict += f". The product was measured while {'; '.join(disturbances)}: it may be faster"
    found.verdict = verdict
    return found


def _parts(breakdown: schema.Breakdown, compute_fraction: float, pipeline: str, precision: str) -> list[str]:
    """What takes the time of a step, the largest share first, and what may help."""
    step_s = breakdown.step_s
    assert step_s is not None
    compute = ((breakdown.forward_s or 0.0) + (breakdown.backward_s or 0.0)) / step_s
    words = f"forward and backward take {compute:.0%}, at {compute_fraction:.0%} of that rate"
    if compute_fraction < _NEAR:
        other = " or training.precision=bf16-mixed" if precision == "32-true" else ""
        words += f" (small products, or much that is no product: a larger batch{other} may help)"
    found = [(compute, words)]
    for part, what, advice in (
        ("data", "waiting for batches", "dataset.pipeline=memory, or more dataset.num_workers, may help"),
        ("host_to_device", "copying batches to the device", "dataset.pipeline=memory may help"),
        ("communication", "waiting for the gradients of other ranks", "more samples per rank may help"),
        ("optimizer", "the optimizer", "fewer steps with larger batches may help"),
        ("rest", "what is in no part", ""),
    ):
        share = (breakdown.of_part(part) or 0.0) / step_s
        helps = advice and not (pipeline == "memory" and "pipeline" in advice)
        found.append((share, f"{what} takes {share:.0%}{f' ({advice})' if helps else ''}"))
    return [text for share, text in sorted(found, reverse=True) if share >= _WORTH_NAMING]
