"""Floating-point operations of a training step, counted as torch carries it out.

Counted are matrix products, convolutions, attention and recurrent layers, as everybody does who speaks of MFU; a
multiplication and an addition are two operations. Attention's backward pass counts twice its forward pass: what a
kernel computes a second time to save memory is work of the kernel, not of the model (Chowdhery et al. 2022, PaLM,
appendix B).
"""

import copy
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

log = logging.getLogger(__name__)

_aten = torch.ops.aten
_CHECKPOINT = str(Path("torch", "utils", "checkpoint.py"))
# Operators that compute much and have no formula here: one of them would be counted as nothing.
_HEAVY = re.compile(r"rnn|lstm_mps|(grouped|int|pack)_mm|conv_depthwise|miopen_conv|slow_conv|attention|attn")


_PRODUCT = re.compile(r"linear|matmul|mm\b|mm\.|bmm|attention|convolution")


def _is_recomputed() -> bool:
    """Whether activation checkpointing computes a part of the forward pass again, within the backward pass."""
    if torch._C._current_graph_task_id() == -1 or not torch.is_grad_enabled():
        return False
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.endswith(_CHECKPOINT):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


class FlopCounter(TorchDispatchMode):
    """Counts the floating-point operations of what is computed within its context, and changes nothing of it.

    torch's own FlopCounterMode tracks modules by global hooks and has no formula for attention on the CPU:
    https://github.com/pytorch/pytorch/issues/195460

    Attributes:
        total: of all operators so far.
        unknown: names of operators that compute much and have no formula; where there is one, `total` is too small.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self.unknown: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = _FORMULAS.get(getattr(func, "_overloadpacket", func))
        if types and _PRODUCT.search(str(func)):  # a DTensor's shape is of all ranks; a nested tensor's hides others
            self.unknown.add(f"{func} of {types[0].__name__}")
        elif formula is None:
            if _HEAVY.search(str(func)):
                self.unknown.add(str(func))
        elif not _is_recomputed():
            try:
                self.total += int(formula(*args, **kwargs, out_val=out))
            except Exception as error:  # of shapes that a formula doesn't expect; the training must not fail by it
                self.unknown.add(f"{func} ({type(error).__name__})")
        return out

    def __enter__(self) -> "FlopCounter":
        super().__enter__()  # type: ignore[no-untyped-call]
        return self


def count_flops(network: nn.Module, image_shape: tuple[int, int, int]) -> int | None:
    """Floating-point operations of one training step per sample, forward and backward, without computing it; None
    where it can't be followed.
    """
    try:
        on_meta = copy.deepcopy(network).to("meta").eval()
        with FlopCounter() as counter:
            # Two samples: some layers refuse to take one.
            on_meta(torch.zeros(2, *image_shape, device="meta")).sum().backward()
        if counter.unknown:
            log.debug("FLOPs not counted: no formula for %s", ", ".join(sorted(counter.unknown)))
            return None
        return counter.total // 2
    except Exception as error:  # of whatever kind: the figure is no reason to fail
        log.debug("FLOPs not counted: %s", error)
        return None


def _convolution_backward_flops(grad: Tensor, x: Tensor, w: Tensor, *rest: Any, **_: Any) -> int:
    """Of the backward pass of a convolution. torch's own formula takes the groups of a grouped one for one."""
    _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, wanted = rest
    forward: int = conv_flop_count(list(x.shape), list(w.shape), list(grad.shape), transposed)
    return forward * int(sum(wanted[:2]))  # for the inputs and for the weights as many as forward


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Queries (B, H, Q, D) by keys (B, H', K, D), and the weights by values (B, H', K, V): masks save nothing."""
    batch, heads, num_queries, width = query.shape
    return 2 * batch * heads * num_queries * key.shape[-2] * (width + value.shape[-1])


def _attention_backward_flops(_grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return 2 * _attention_flops(query, key, value)


def _lstm_flops(x: Tensor, weight_ih: Tensor, weight_hh: Tensor, *_: Any, **__: Any) -> int:
    """One layer in one direction over x, (T, B, features)."""
    return 2 * x.shape[0] * x.shape[1] * (weight_ih.numel() + weight_hh.numel())


def _lstm_backward_flops(x: Tensor, weight_ih: Tensor, weight_hh: Tensor, *_: Any, **__: Any) -> int:
    return 2 * _lstm_flops(x, weight_ih, weight_hh)


def _named(names: Sequence[str], formula: Callable[..., int]) -> dict[Any, Callable[..., int]]:
    """The formula by operator, as far as this torch has it."""
    return {getattr(_aten, name): formula for name in names if hasattr(_aten, name)}


_KINDS = (
    "flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu", "attention_math_for_mps",
)  # fmt: skip
_FORMULAS: Mapping[Any, Callable[..., int]] = {
    **flop_registry,
    **_named(["convolution_backward"], _convolution_backward_flops),
    **_named([f"_scaled_dot_product_{kind}" for kind in _KINDS], _attention_flops),
    **_named([f"_scaled_dot_product_{kind}_backward" for kind in _KINDS], _attention_backward_flops),
    **_named(["mkldnn_rnn_layer"], _lstm_flops),
    **_named(["mkldnn_rnn_layer_backward"], _lstm_backward_flops),
}
