"""Floating-point operations of a training step, counted as torch carries it out."""

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

log = logging.getLogger(__name__)


def count_flops(network: nn.Module, image_shape: tuple[int, int, int]) -> int | None:
    """Floating-point operations of one training step per sample, forward and backward, as torch's own counter has
    them (a multiplication and an addition are two); None where it can't follow the network.
    """
    try:
        on_meta = copy.deepcopy(network).to("meta").eval()
        with FlopCounterMode(display=False, custom_mapping=_FLOPS) as counter:
            # Two samples: some layers refuse to take one.
            on_meta(torch.zeros(2, *image_shape, device="meta")).sum().backward()
        return int(counter.get_total_flops()) // 2
    except Exception as error:  # of whatever kind: the figure is no reason to fail
        log.debug("FLOPs not counted: %s", error)
        return None


def _convolution_backward_flops(
    grad_shape: Sequence[int], x_shape: Sequence[int], w_shape: Sequence[int], *rest: Any, **_: Any
) -> int:
    """Of the backward pass of a convolution. torch's own formula takes the groups of a grouped one for one."""
    _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, wanted = rest
    forward: int = conv_flop_count(list(x_shape), list(w_shape), list(grad_shape), transposed)
    return forward * int(sum(wanted[:2]))  # for the inputs and for the weights as many as forward


_FLOPS = {torch.ops.aten.convolution_backward: _convolution_backward_flops}
