"""How near a run came to the limit of its device, and what held it back, in plain words."""

from collections.abc import Mapping, Sequence
from typing import Any

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
    matmul_flop_per_s: float,
    copy_bytes_per_s: float,
    breakdown: Mapping[str, Any],
    optimizer_bytes: int,
    pipeline: str,
    precision: str,
    disturbances: Sequence[str] = (),
) -> dict[str, Any]:
    """What a run achieved of what its device can do.

    Args:
        flops_per_sample: floating-point operations of a training step per sample, forward and backward.
        samples_per_s: of all ranks, in the epochs.
        global_batch_size: samples of a step of all ranks.
        matmul_flop_per_s, copy_bytes_per_s: the peak of all ranks together.
        breakdown: seconds of a step by part (`record.PARTS`); may hold nulls only.
        optimizer_bytes: that the optimizers of all ranks read and write in a step.
        pipeline, precision: as the configuration names them: nothing is advised that is so already.
        disturbances: what disturbed the machine while the peak was measured, which is higher then than it seems.

    Returns:
        achieved_flop_per_s; achieved_fraction: of the peak; compute_fraction: the same while a step is in its forward
        and backward pass; optimizer_bytes_per_s, above the fastest copy where weights and state stay in the caches;
        verdict: in words. None: not known.
    """
    compute_fraction = optimizer_bytes_per_s = None
    if breakdown["step_s"] is not None:
        compute_s = breakdown["forward_s"] + breakdown["backward_s"]
        if flops_per_sample:
            compute_fraction = flops_per_sample * global_batch_size / compute_s / matmul_flop_per_s
        optimizer_bytes_per_s = optimizer_bytes / breakdown["optimizer_s"]
    found = {"compute_fraction": compute_fraction, "optimizer_bytes_per_s": optimizer_bytes_per_s}
    if not flops_per_sample or samples_per_s is None:
        return found
    achieved = flops_per_sample * samples_per_s
    fraction = achieved / matmul_flop_per_s
    fastest = max(fraction, compute_fraction or 0.0)
    if fastest > _IMPOSSIBLE:
        verdict = (
            f"not known: {fastest:.0%} of the fastest matrix product that was found can't be, so something disturbed "
            "that measurement"
        )
        return found | {"achieved_flop_per_s": achieved, "achieved_fraction": fraction, "verdict": verdict}
    verdict = f"{'near the limit: ' if fraction >= _NEAR else ''}{fraction:.0%} of the fastest matrix product here"
    if compute_fraction is not None:
        parts = "; ".join(_parts(breakdown, compute_fraction, pipeline, precision))
        verdict = f"{verdict}. Of a step, {parts}" if parts else verdict
    if disturbances:
        verdict += f". The product was measured while {'; '.join(disturbances)}: it may be faster"
    return found | {"achieved_flop_per_s": achieved, "achieved_fraction": fraction, "verdict": verdict}


def _parts(breakdown: Mapping[str, Any], compute_fraction: float, pipeline: str, precision: str) -> list[str]:
    """What takes the time of a step, the largest share first, and what may help."""
    compute = (breakdown["forward_s"] + breakdown["backward_s"]) / breakdown["step_s"]
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
        share = (breakdown[f"{part}_s"] or 0.0) / breakdown["step_s"]
        helps = advice and not (pipeline == "memory" and "pipeline" in advice)
        found.append((share, f"{what} takes {share:.0%}{f' ({advice})' if helps else ''}"))
    return [text for share, text in sorted(found, reverse=True) if share >= _WORTH_NAMING]
