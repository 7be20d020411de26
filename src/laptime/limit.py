"""How near a run came to the limit of its device, and what held it back, in plain words."""

from collections.abc import Mapping
from typing import Any

# Of the fastest matrix product: a network of large products alone gets about there.
_NEAR = 0.6
# A part of the step below this share explains nothing.
_WORTH_NAMING = 0.1

_WORDS = {
    "data": "waiting for batches takes {:.0%}: try dataset.pipeline=memory, or more dataset.num_workers",
    "host_to_device": "copying batches to the device takes {:.0%}: try dataset.pipeline=memory",
    "communication": "waiting for the gradients of other ranks takes {:.0%}: more samples per rank, or fewer ranks",
    "rest": "what is in no part takes {:.0%}: more training.steps_per_execution",
}


def limit(
    flops_per_sample: int | None,
    samples_per_s: float | None,
    global_batch_size: int,
    matmul_flop_per_s: float,
    copy_bytes_per_s: float,
    breakdown: Mapping[str, Any],
    optimizer_bytes: int,
) -> dict[str, Any]:
    """What a run achieved of what its device can do.

    Args:
        flops_per_sample: floating-point operations of a training step per sample, forward and backward.
        samples_per_s: of all ranks, in the epochs.
        global_batch_size: samples of a step of all ranks.
        matmul_flop_per_s, copy_bytes_per_s: the peak of all ranks together.
        breakdown: seconds of a step by part (`record.PARTS`); may hold nulls only.
        optimizer_bytes: that the optimizers of all ranks read and write in a step.

    Returns:
        achieved_flop_per_s; achieved_fraction: of the peak; compute_fraction: the same while a step is in its forward
        and backward pass; optimizer_bytes_per_s; verdict: a sentence. None: not known.
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
    verdict = f"{fraction:.0%} of the fastest matrix product here"
    if fraction >= _NEAR:
        verdict = f"near the limit: {verdict}"
    elif breakdown["step_s"] is not None:
        reasons = _reasons(breakdown, compute_fraction or 0.0, optimizer_bytes_per_s or 0.0, copy_bytes_per_s)
        verdict = f"{verdict}; of a step, {'; '.join(reasons)}" if reasons else verdict
    return found | {"achieved_flop_per_s": achieved, "achieved_fraction": fraction, "verdict": verdict}


def _reasons(
    breakdown: Mapping[str, Any], compute_fraction: float, optimizer_bytes_per_s: float, copy_bytes_per_s: float
) -> list[str]:
    """What takes the time that the products alone would not, the largest share first."""
    shares = {part: (breakdown[f"{part}_s"] or 0.0) / breakdown["step_s"] for part in _WORDS}
    reasons = [(share, _WORDS[part].format(share)) for part, share in shares.items()]
    compute = (breakdown["forward_s"] + breakdown["backward_s"]) / breakdown["step_s"]
    if compute_fraction < _NEAR:
        why = "its products are small, or much in it is no product: a larger batch or bf16-mixed may help"
        reasons.append((compute, f"forward and backward take {compute:.0%} at {compute_fraction:.0%} of it: {why}"))
    optimizer = breakdown["optimizer_s"] / breakdown["step_s"]
    # Faster than memory can be: weights and state of a small network stay in the caches.
    speed = f"{optimizer_bytes_per_s / 1e9:.0f} GB/s, where copying memory does {copy_bytes_per_s / 1e9:.0f}"
    why = f"it moves weights and state at {speed}: fewer steps with larger batches"
    reasons.append((optimizer, f"the optimizer takes {optimizer:.0%}: {why}"))
    return [text for share, text in sorted(reasons, reverse=True) if share >= _WORTH_NAMING]
