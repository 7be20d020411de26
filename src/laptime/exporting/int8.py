"""Quantizes dynamically to int8 with the tool of each format. Weights are rounded once, a layer's inputs in each call.

- torchscript: torch.ao.quantization.quantize_dynamic, which PyTorch has deprecated but still ships.
- torch_export: torchao, its successor. torch.export can't export the layers of torch.ao.
- onnx: onnxruntime's quantize_dynamic, on the exported ONNX file.
"""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from laptime.exporting.formats import Loaded, load_onnx, onnx, quiet, torch_export, torchscript


class NothingToQuantize(ValueError):
    """The network has no layer that can be quantized."""


def torchscript_int8(network: nn.Module, images: Tensor, path: Path) -> tuple[Loaded, list[str]]:
    """Return the loaded file and the names of the layers that compute in int8."""
    kinds = (nn.Linear, nn.LSTM, nn.GRU)
    layers = _layer_names(network, kinds)
    with quiet():
        quantized = torch.ao.quantization.quantize_dynamic(network, set(kinds), dtype=torch.qint8)
    return torchscript(quantized, images, path), layers


def torch_export_int8(network: nn.Module, images: Tensor, path: Path) -> tuple[Loaded, list[str]]:
    """Return the loaded file and the names of the layers that compute in int8."""
    layers = _layer_names(network, (nn.Linear,))
    with quiet():
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

        quantized = copy.deepcopy(network)
        quantize_(quantized, Int8DynamicActivationInt8WeightConfig())
    return torch_export(quantized, images, path), layers


def onnx_int8(network: nn.Module, images: Tensor, path: Path) -> tuple[Loaded, list[str]]:
    """Return the loaded file and the names of the layers that compute in int8."""
    import onnx as onnx_package
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = path.with_suffix(".whole")
    try:
        original = onnx(network, images, whole)
        # Drop the recorded shapes: older versions transpose weights, and then reject them because the shapes differ.
        model = onnx_package.load(whole)
        del model.graph.value_info[:]
        onnx_package.save(model, whole)
        # On most CPUs, int8 convolutions are slower than float32. Weights have 7 bits: with 8, sums of two products
        # saturate on x86 CPUs without VNNI (onnxruntime, "Quantize ONNX models").
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
        raise NothingToQuantize("the network has no linear layer")
    return load_onnx(path, original.fixed_batch, original.notes), layers


EXPORTERS = {"onnx": onnx_int8, "torch_export": torch_export_int8, "torchscript": torchscript_int8}


def _layer_names(network: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[str]:
    layers = [name for name, module in network.named_modules() if type(module) in kinds]
    if not layers:
        raise NothingToQuantize(f"the network has no layer of type {' or '.join(kind.__name__ for kind in kinds)}")
    return layers
