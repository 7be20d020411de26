"""Dynamic quantisation to int8, by each format's own means: weights are rounded once, a layer's inputs in each call.

- torchscript: torch.ao.quantization.quantize_dynamic, which torch has announced to take away, and still ships.
- torch_export: torchao, which torch names as its successor (the former's layers can't be exported this way).
- onnx: onnxruntime's quantize_dynamic, on the finished ONNX file.
"""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from laptime.exporting.formats import Loaded, load_onnx, onnx, quiet, torch_export, torchscript


class NothingToQuantise(ValueError):
    """The network has no layer that could be."""


def torchscript_int8(network: nn.Module, images: Tensor, path: Path) -> tuple[Loaded, list[str]]:
    """Returns the file read back, and the names of the layers that compute in int8."""
    kinds = (nn.Linear, nn.LSTM, nn.GRU)
    layers = _named(network, kinds)
    with quiet():
        quantised = torch.ao.quantization.quantize_dynamic(network, set(kinds), dtype=torch.qint8)
    return torchscript(quantised, images, path), layers


def torch_export_int8(network: nn.Module, images: Tensor, path: Path) -> tuple[Loaded, list[str]]:
    """Returns the file read back, and the names of the layers that compute in int8."""
    layers = _named(network, (nn.Linear,))
    with quiet():
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantised = copy.deepcopy(network)
        quantize_(quantised, Int8DynamicActivationInt8WeightConfig())
    return torch_export(quantised, images, path), layers


def onnx_int8(network: nn.Module, images: Tensor, path: Path) -> tuple[Loaded, list[str]]:
    """Returns the file read back, and the names of the layers that compute in int8."""
    import onnx as onnx_package
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = path.with_suffix(".whole")
    try:
        original = onnx(network, images, whole)
        # The shapes of weights, which older quantisers transpose, and then find them to be others than those noted.
        model = onnx_package.load(whole)
        del model.graph.value_info[:]
        onnx_package.save(model, whole)
        # Convolutions in int8 are slower than in float32 on most CPUs. Weights take 7 bits: of 8, the sums of two
        # products saturate on x86 without VNNI, where the file may be run (onnxruntime, "Quantize ONNX models").
        with quiet():
            quantize_dynamic(
                whole,
                path,
                weight_type=QuantType.QInt8,
                reduce_range=True,
                op_types_to_quantize=["MatMul", "Gemm"],
            )
    finally:
        whole.unlink(missing_ok=True)
    nodes = onnx_package.load(path, load_external_data=False).graph.node
    layers = [node.name.removesuffix("_quant") for node in nodes if node.op_type == "MatMulInteger"]
    if not layers:
        raise NothingToQuantise("the network has no linear layer")
    return load_onnx(path, original.fixed_batch, original.notes), layers


EXPORTERS = {"onnx": onnx_int8, "torch_export": torch_export_int8, "torchscript": torchscript_int8}


def _named(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[str]:
    layers = [name for name, module in network.named_modules() if type(module) in kinds]
    if not layers:
        raise NothingToQuantise(f"the network has none of {', '.join(kind.__name__ for kind in kinds)}")
    return layers
