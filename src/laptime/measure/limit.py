"""Computes the MFU (model FLOPs utilization) of a run, and describes what limits it."""

from collections.abc import Mapping, Sequence

import torch

from laptime.measure.peak import Peak
from laptime.record import schema
from laptime.text import percent

# The approximate MFU of a network that consists of large matrix products.
_NEAR_LIMIT_MFU = 0.7
# A higher MFU means that the measurement of the peak was disturbed.
_MAX_POSSIBLE_MFU = 1.1
# Phases with a smaller fraction of the step are not mentioned.
_MIN_FRACTION = 0.1
_PHASE_NAMES = {
    "data": "waiting for batches",
    "host_to_device": "copying batches to the device",
    "communication": "waiting for the gradients of other ranks",
    "optimizer": "the optimizer",
    "rest": "everything else",
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
    """Compare what a run achieved with the measured peak of its devices.

    Args:
        flops_per_item: floating-point operations of the forward and backward pass for one item, which is a sample or a
            batch of one rank.
        items_per_s: items per second of all ranks, in the laps.
        items_per_step: items of all ranks in an optimizer step; None: not known.
        peak: the peak of all ranks together.
        breakdown: seconds of a step by phase.
        optimizer_bytes: bytes that the optimizers of all ranks read and write in a step.
        advice: what may make a phase faster, by phase; `compute` is the forward and backward pass.
        disturbances: interference while the peak was measured, which makes the measured peak too low.

    Returns:
        The section of the record. `mfu` is relative to the fastest matrix product; `compute_mfu` counts only the time
        of the forward and backward pass. `optimizer_bytes_per_s` may exceed the fastest copy if weights and state stay
        in the caches.
    """
    result = schema.Peak(matmul_flop_per_s=peak.matmul_flop_per_s, copy_bytes_per_s=peak.copy_bytes_per_s)
    matmul_flop_per_s = peak.matmul_flop_per_s
    if breakdown.step_s is not None:
        compute_s = (breakdown.forward_s or 0.0) + (breakdown.backward_s or 0.0)
        if flops_per_item and items_per_step and compute_s:
            result.compute_mfu = flops_per_item * items_per_step / compute_s / matmul_flop_per_s
        if breakdown.optimizer_s:
            result.optimizer_bytes_per_s = optimizer_bytes / breakdown.optimizer_s
    if not flops_per_item or items_per_s is None:
        return result
    compute_mfu = result.compute_mfu
    achieved = flops_per_item * items_per_s
    mfu = achieved / matmul_flop_per_s
    result.achieved_flop_per_s, result.mfu = achieved, mfu
    highest = max(mfu, compute_mfu or 0.0)
    if highest > _MAX_POSSIBLE_MFU:
        result.verdict = f"MFU unknown: {highest:.0%} is impossible, so the measurement of the peak was disturbed"
        return result
    near = "near the limit: " if mfu >= _NEAR_LIMIT_MFU else ""
    verdict = f"{near}{percent(mfu)} MFU (peak: the fastest matrix product measured here)"
    if compute_mfu is not None:
        phases = "; ".join(_describe_phases(breakdown, compute_mfu, advice))
        verdict = f"{verdict}. In a step, {phases}" if phases else verdict
    if disturbances:
        verdict += (
            f". The peak was measured under interference ({'; '.join(disturbances)}): the true peak may be higher"
        )
    result.verdict = verdict
    return result


def _describe_phases(breakdown: schema.Breakdown, compute_mfu: float, advice: Mapping[str, str]) -> list[str]:
    """Describe which phases take the time of a step, the longest first, and what may help."""
    step_s = breakdown.step_s
    assert step_s is not None
    compute = ((breakdown.forward_s or 0.0) + (breakdown.backward_s or 0.0)) / step_s
    passes = "forward and backward" if breakdown.optimizer_s is not None else "forward, backward and optimizer"
    text = f"{passes} take {compute:.0%}, at {percent(compute_mfu)} MFU"
    if compute_mfu < _NEAR_LIMIT_MFU:
        text += f" (small matrix products, or many other operations: {advice['compute']} may help)"
    descriptions = [(compute, text)]
    for phase, name in _PHASE_NAMES.items():
        fraction = (breakdown.of_phase(phase) or 0.0) / step_s
        hint = f" ({advice[phase]} may help)" if phase in advice else ""
        descriptions.append((fraction, f"{name} takes {fraction:.0%}{hint}"))
    return [text for fraction, text in sorted(descriptions, reverse=True) if fraction >= _MIN_FRACTION]


def training_advice(pipeline: str, precision: str) -> dict[str, str]:
    """Return what may make Laptime's own training faster, by phase.

    Args:
        pipeline, precision: the configured values. Settings that are in use already are not suggested.
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
    """Return the bytes that a step moves at least: each trained weight and state tensor twice, each gradient once."""
    moved = 0
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.requires_grad:
                state = [value for value in optimizer.state.get(weight, {}).values() if torch.is_tensor(value)]
                state_bytes = sum(tensor.numel() * tensor.element_size() for tensor in state)
                moved += 3 * weight.numel() * weight.element_size() + 2 * state_bytes
    return moved
