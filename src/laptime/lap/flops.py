"""Floating-point operations of a training step, counted while torch executes it.

Matrix products, convolutions, attention and recurrent layers are counted, as is usual for MFU. A multiplication and an
addition are two operations. Attention's backward pass counts twice its forward pass: recomputation in a kernel to save
memory is not work of the model.

Source: Chowdhery et al., PaLM (2022), appendix B.
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
# Expensive operators without a formula here. They are reported as unknown, because they would count as zero.
_HEAVY = re.compile(r"rnn|lstm_mps|(grouped|int|pack)_mm|conv_depthwise|miopen_conv|slow_conv|attention|attn")


_PRODUCT = re.compile(r"linear|matmul|mm\b|mm\.|bmm|attention|convolution")


def _is_recomputed() -> bool:
    """Whether activation checkpointing is recomputing the forward pass, inside the backward pass."""
    if torch._C._current_graph_task_id() == -1 or not torch.is_grad_enabled():
        return False
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.endswith(_CHECKPOINT):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


class FlopCounter(TorchDispatchMode):
    """A context manager that counts floating-point operations and changes no result.

    torch's own FlopCounterMode tracks modules by global hooks and has no formula for attention on the CPU:
    https://github.com/pytorch/pytorch/issues/195460

    Attributes:
        total: number of operations so far.
        unknown: names of expensive operators without a formula; if there is one, `total` is too small.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0
        self.unknown: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = _FORMULAS.get(getattr(func, "_overloadpacket", func))
        if types and _PRODUCT.search(str(func)):  # the shape of a DTensor is global, that of a nested tensor incomplete
            self.unknown.add(f"{func} of {types[0].__name__}")
        elif formula is None:
            if _HEAVY.search(str(func)):
                self.unknown.add(str(func))
        elif not _is_recomputed():
            try:
                self.total += int(formula(*args, **kwargs, out_val=out))
            except Exception as error:  # an unexpected shape must not fail the training
                self.unknown.add(f"{func} ({type(error).__name__})")
        return out

    def __enter__(self) -> "FlopCounter":
        super().__enter__()  # type: ignore[no-untyped-call]
        return self


def count_flops(network: nn.Module, inputs: Tensor) -> int | None:
    """Count the floating-point operations per sample of a training step, forward and backward, on the meta device.

    Args:
        network: a network that returns one tensor.
        inputs: a batch of inputs on the meta device. At least two samples, because some layers refuse a single one.

    Returns:
        The number; None: the network can't run on the meta device, or an operator has no formula.
    """
    try:
        on_meta = copy.deepcopy(network).to("meta").eval()
        with FlopCounter() as counter:
            on_meta(inputs).sum().backward()
        if counter.unknown:
            log.debug("FLOPs not counted: no formula for %s", ", ".join(sorted(counter.unknown)))
            return None
        return counter.total // len(inputs)
    except Exception as error:  # any error: the figure is optional
        log.debug("FLOPs not counted: %s", error)
        return None


def _convolution_backward_flops(grad: Tensor, x: Tensor, w: Tensor, *rest: Any, **_: Any) -> int:
    """FLOPs of a convolution's backward pass. torch's own formula ignores the groups of a grouped convolution."""
    _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, output_mask = rest
    forward: int = conv_flop_count(list(x.shape), list(w.shape), list(grad.shape), transposed)
    # The gradients of input and weight each need as many operations as the forward pass.
    return forward * int(sum(output_mask[:2]))


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """FLOPs of queries (B, H, Q, D) times keys (B, H', K, D), and weights times values (B, H', K, V), masked or not."""
    batch, heads, num_queries, width = query.shape
    return 2 * batch * heads * num_queries * key.shape[-2] * (width + value.shape[-1])


def _attention_backward_flops(_grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return 2 * _attention_flops(query, key, value)


def _lstm_flops(x: Tensor, weight_ih: Tensor, weight_hh: Tensor, *_: Any, **__: Any) -> int:
    """FLOPs of one LSTM layer in one direction over x (T, B, features)."""
    return 2 * x.shape[0] * x.shape[1] * (weight_ih.numel() + weight_hh.numel())


def _lstm_backward_flops(x: Tensor, weight_ih: Tensor, weight_hh: Tensor, *_: Any, **__: Any) -> int:
    return 2 * _lstm_flops(x, weight_ih, weight_hh)


def _named(names: Sequence[str], formula: Callable[..., int]) -> dict[Any, Callable[..., int]]:
    """Return the formula by operator, for the named operators that this version of torch has."""
    return {getattr(_aten, name): formula for name in names if hasattr(_aten, name)}


_ATTENTION_KERNELS = (
    "flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu", "attention_math_for_mps",
)  # fmt: skip
_FORMULAS: Mapping[Any, Callable[..., int]] = {
    **flop_registry,
    **_named(["convolution_backward"], _convolution_backward_flops),
    **_named([f"_scaled_dot_product_{kind}" for kind in _ATTENTION_KERNELS], _attention_flops),
    **_named([f"_scaled_dot_product_{kind}_backward" for kind in _ATTENTION_KERNELS], _attention_backward_flops),
    **_named(["mkldnn_rnn_layer"], _lstm_flops),
    **_named(["mkldnn_rnn_layer_backward"], _lstm_backward_flops),
}
