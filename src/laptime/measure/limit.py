"""How near a run came to the limit of its device, and what held it back, in plain words."""

from collections.abc import Mapping, Sequence

import torch

from laptime.measure.peak import Peak
from laptime.record import schema
from laptime.text import percent

# Of the fastest matrix product: a network of large products alone gets about there.
_NEAR = 0.7
# No step computes faster than that: it was the product that was slow when it was measured.
_IMPOSSIBLE = 1.1
# A part of the step below this share explains nothing.
_WORTH_NAMING = 0.1
_PARTS = {
    "data": "waiting for batches",
    "host_to_device": "copying batches to the device",
    "communication": "waiting for the gradients of other ranks",
    "optimizer": "the optimizer",
    "rest": "what is in no part",
}


def limit(
    flops_per_item: int | None,
    items_per_s: float | None,
    items_per_step: int | None,
    peak: Peak,
    breakdown: schema.Breakdown,
    optimizer_bytes: int,
    advice: Mapping[str, str],
    disturbances: Sequence[str] = (),
) -> schema.Peak:
    """What a run achieved of what its device can do.

    Args:
        flops_per_item: floating-point operations of training on an item, forward and backward. An item is what they
            are known for: a sample, or a batch of one rank.
        items_per_s: of all ranks, in the laps.
        items_per_step: of all ranks in an optimizer step; None: not known.
        peak: of all ranks together.
        breakdown: seconds of a step by part.
        optimizer_bytes: that the optimizers of all ranks read and write in a step.
        advice: what may help where a part takes long, by part; `compute` for the forward and backward pass.
        disturbances: what disturbed the machine while the peak was measured, which is higher then than it seems.

    Returns:
        The section of the record. `mfu` is of the fastest matrix product; `compute_mfu` the same
        while a step is in its forward and backward pass; `optimizer_bytes_per_s` may be above the fastest copy, where
        weights and state stay in the caches.
    """
    found = schema.Peak(matmul_flop_per_s=peak.matmul_flop_per_s, copy_bytes_per_s=peak.copy_bytes_per_s)
    matmul_flop_per_s = peak.matmul_flop_per_s
    if breakdown.step_s is not None:
        compute_s = (breakdown.forward_s or 0.0) + (breakdown.backward_s or 0.0)
        if flops_per_item and items_per_step and compute_s:
            found.compute_mfu = flops_per_item * items_per_step / compute_s / matmul_flop_per_s
        if breakdown.optimizer_s:
            found.optimizer_bytes_per_s = optimizer_bytes / breakdown.optimizer_s
    if not flops_per_item or items_per_s is None:
        return found
    compute_mfu = found.compute_mfu
    achieved = flops_per_item * items_per_s
    fraction = achieved / matmul_flop_per_s
    found.achieved_flop_per_s, found.mfu = achieved, fraction
    fastest = max(fraction, compute_mfu or 0.0)
    if fastest > _IMPOSSIBLE:
        found.verdict = (
            f"not known: {fastest:.0%} of the fastest matrix product that was found can't be, so something disturbed "
            "that measurement"
        )
        return found
    verdict = f"{'near the limit: ' if fraction >= _NEAR else ''}{percent(fraction)} of the fastest matrix product here"
    if compute_mfu is not None:
        parts = "; ".join(_parts(breakdown, compute_mfu, advice))
        verdict = f"{verdict}. Of a step, {parts}" if parts else verdict
    if disturbances:
        verdict += f". The product was measured under interference ({'; '.join(disturbances)}): it may be faster"
    found.verdict = verdict
    return found


def _parts(breakdown: schema.Breakdown, compute_mfu: float, advice: Mapping[str, str]) -> list[str]:
    """What takes the time of a step, the largest share first, and what may help."""
    step_s = breakdown.step_s
    assert step_s is not None
    compute = ((breakdown.forward_s or 0.0) + (breakdown.backward_s or 0.0)) / step_s
    words = f"forward and backward take {compute:.0%}, at {percent(compute_mfu)} of that rate"
    if compute_mfu < _NEAR:
        words += f" (small products, or much that is no product: {advice['compute']} may help)"
    found = [(compute, words)]
    for part, what in _PARTS.items():
        share = (breakdown.of_phase(part) or 0.0) / step_s
        helps = f" ({advice[part]} may help)" if part in advice else ""
        found.append((share, f"{what} takes {share:.0%}{helps}"))
    return [text for share, text in sorted(found, reverse=True) if share >= _WORTH_NAMING]


def own_advice(pipeline: str, precision: str) -> dict[str, str]:
    """What to try in Laptime's own training, by part.

    Args:
        pipeline, precision: as the configuration names them: nothing is advised that is so already.
    """
    advice = {
        "compute": f"a larger batch{' or training.precision=bf16-mixed' if precision == '32-true' else ''}",
        "communication": "more samples per rank",
        "optimizer": "fewer steps with larger batches",
    }
    if pipeline != "memory":
        advice |= {
            "data": "dataset.pipeline=memory, or more dataset.num_workers,",
            "host_to_device": "dataset.pipeline=memory",
        }
    return advice


def bytes_moved(optimizer: torch.optim.Optimizer) -> int:
    """Bytes that one step must read and write: each trained weight and each tensor of its state twice, each gradient
    once."""
    moved = 0
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.requires_grad:
                state = [each for each in optimizer.state.get(weight, {}).values() if torch.is_tensor(each)]
                state_bytes = sum(each.numel() * each.element_size() for each in state)
                moved += 3 * weight.numel() * weight.element_size() + 2 * state_bytes
    return moved
