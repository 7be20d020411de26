"""AdamW as GPTs are trained: only matrices decay."""

from collections.abc import Iterable, Sequence

from torch import Tensor
from torch.optim import AdamW


def adamw_gpt(params: Iterable[Tensor], lr: float, betas: Sequence[float], weight_decay: float, fused: bool) -> AdamW:
    """Return torch's AdamW, in which weights with fewer than two dimensions, e.g. of norms, don't decay.

    Args:
        params: the network's weights.
        lr, weight_decay, fused: the arguments of AdamW.
        betas: two numbers, AdamW's betas.

    Raises:
        ValueError: there are not two betas, or AdamW refuses a value.

    Source: A. Karpathy's nanoGPT.
    """
    if len(betas) != 2:
        raise ValueError(f"betas={list(betas)}: must be two numbers.")
    weights = list(params)
    matrices, others = [w for w in weights if w.ndim >= 2], [w for w in weights if w.ndim < 2]
    groups = [
        {"params": part, "weight_decay": decay} for part, decay in ((matrices, weight_decay), (others, 0.0)) if part
    ]
    return AdamW(groups, lr=lr, betas=(betas[0], betas[1]), fused=fused)
