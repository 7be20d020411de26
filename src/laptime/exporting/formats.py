"""One function for each format: a network to a file, and the file back to something that can be called.

A batch of any size goes through, where the format and the network can; otherwise it is fixed at one image.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from laptime.errors import first_line

Call = Callable[[Tensor], Tensor]
SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2", "torchscript": ".torchscript.pt"}


@dataclass(frozen=True)
class Loaded:
    """A file that was read back.

    Attributes:
        call: images (B, C, H, W) to logits (B, num_classes), float32, on the CPU.
        fixed_batch: the only batch size that it takes; None: any.
        details: of the format, in plain values.
        notes: what there is to be said about it.
    """

    call: Call
    fixed_batch: int | None = None
    details: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def torch_export(network: nn.Module, images: Tensor, path: Path) -> Loaded:
    """torch.export's own file."""
    program, fixed_batch, notes = _program(network, images)
    with quiet():
        torch.export.save(program, path)
        module = torch.export.load(path).module()
    return Loaded(module, fixed_batch, notes=notes)


def onnx(network: nn.Module, images: Tensor, path: Path) -> Loaded:
    """ONNX in one file, by way of torch.export."""
    import onnx as onnx_package

    program, fixed_batch, notes = _program(network, images)
    with quiet():
        exported = torch.onnx.export(
            program, input_names=["images"], output_names=["logits"], dynamo=True, external_data=False, verbose=False
        )
        assert exported is not None
        exported.save(path, external_data=False)
    onnx_package.checker.check_model(path)
    return load_onnx(path, fixed_batch, notes)


def load_onnx(path: Path, fixed_batch: int | None, notes: tuple[str, ...]) -> Loaded:
    """An ONNX file in ONNX Runtime, on the CPU, with as many threads as torch."""
    import onnx as onnx_package
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()

    def call(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {given.name: images.numpy()})
        return torch.from_numpy(logits)

    model = onnx_package.load(path, load_external_data=False)
    opset = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    return Loaded(call, fixed_batch, {"input": given.name, "opset": opset}, notes)


def torchscript(network: nn.Module, images: Tensor, path: Path) -> Loaded:
    """TorchScript by tracing: what the network did with these images, branches that depend on them frozen."""
    with quiet(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", torch.jit.TracerWarning)
        traced = torch.jit.trace(network, images)
        torch.jit.save(traced, path)
        loaded = torch.jit.load(path, map_location="cpu").eval()
    frozen = [str(each.message) for each in caught if issubclass(each.category, torch.jit.TracerWarning)]
    notes = ["traced; torch advises against TorchScript and may take it away: use torch_export"]
    if frozen:
        notes.append(f"what depends on the images is frozen as for the first ones ({len(frozen)} places)")
    return Loaded(loaded, None, {"method": "trace"}, tuple(notes))


EXPORTERS: dict[str, Callable[[nn.Module, Tensor, Path], Loaded]] = {
    "onnx": onnx,
    "torch_export": torch_export,
    "torchscript": torchscript,
}


def _program(network: nn.Module, images: Tensor) -> tuple[torch.export.ExportedProgram, int | None, tuple[str, ...]]:
    """The network as torch.export sees it: for any batch size, or for one image."""
    any_size = ({0: torch.export.Dim("batch")},)
    with quiet():
        try:
            return torch.export.export(network, (images,), dynamic_shapes=any_size), None, ()
        except Exception as error:
            try:
                program = torch.export.export(network, (images[:1],))
            except Exception:
                raise error from None
            reason = first_line(error)
            return program, 1, (f"takes one image at a time: torch.export can't leave the batch size open ({reason})",)


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters warn of their own insides, and that TorchScript and eager quantisation are to go: that is said here."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "torch.export", "torch.utils._pytree", "root")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
