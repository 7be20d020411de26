"""One function per format, which exports a network to a file and loads the file again as a callable.

If the format or the network does not support batches of any size, the batch size is fixed at one image.
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
    """An exported file, loaded again.

    Attributes:
        call: maps images (B, C, H, W) to logits (B, num_classes), float32, on the CPU.
        fixed_batch: the only batch size that it accepts; None: any.
        details: format-specific entries for export.json, plain values.
        notes: remarks for the user.
    """

    call: Call
    fixed_batch: int | None = None
    details: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def torch_export(network: nn.Module, images: Tensor, path: Path) -> Loaded:
    """Make a torch.export file."""
    program, fixed_batch, notes = _program(network, images)
    with quiet():
        torch.export.save(program, path)
        module = torch.export.load(path).module()
    return Loaded(module, fixed_batch, notes=notes)


def onnx(network: nn.Module, images: Tensor, path: Path) -> Loaded:
    """Make a single ONNX file, through torch.export."""
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
    """Load an ONNX file in ONNX Runtime, on the CPU, with as many threads as torch uses."""
    import onnx as onnx_package
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (model_input,) = session.get_inputs()

    def call(images: Tensor) -> Tensor:
        (logits,) = session.run(None, {model_input.name: images.numpy()})
        return torch.from_numpy(logits)

    model = onnx_package.load(path, load_external_data=False)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return Loaded(call, fixed_batch, {"input": model_input.name, "opset": opset}, notes)


def torchscript(network: nn.Module, images: Tensor, path: Path) -> Loaded:
    """Make a TorchScript file by tracing, which fixes the branches that depend on the images."""
    with quiet(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", torch.jit.TracerWarning)
        traced = torch.jit.trace(network, images)
        torch.jit.save(traced, path)
        loaded = torch.jit.load(path, map_location="cpu").eval()
    frozen = [str(warning.message) for warning in caught if issubclass(warning.category, torch.jit.TracerWarning)]
    notes = ["traced; PyTorch has deprecated TorchScript and may remove it. Use torch_export"]
    if frozen:
        notes.append(f"tracing made constants of {len(frozen)} values that depend on the images")
    return Loaded(loaded, None, {"method": "trace"}, tuple(notes))


EXPORTERS: dict[str, Callable[[nn.Module, Tensor, Path], Loaded]] = {
    "onnx": onnx,
    "torch_export": torch_export,
    "torchscript": torchscript,
}


def _program(network: nn.Module, images: Tensor) -> tuple[torch.export.ExportedProgram, int | None, tuple[str, ...]]:
    """Return the network as an ExportedProgram, its fixed batch size (None: any), and remarks."""
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
            return (
                program,
                1,
                (f"accepts one image at a time: torch.export can't export a dynamic batch size ({reason})",),
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the warnings of exporters: about their internals, and about deprecations that Laptime reports itself."""
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
