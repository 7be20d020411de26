"""Exports a trained network, loads each file again, and compares its outputs with the original's on the test images."""

import io
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from laptime.data.datamodule import DataModule
from laptime.data.image_data import ImageData
from laptime.evaluation.keys import ExportConfig
from laptime.evaluation.predict import Predictions, predict
from laptime.evaluation.trained_run import TrainedRun, use_threads
from laptime.exporting import int8
from laptime.exporting.formats import EXPORTERS, SUFFIXES, Loaded
from laptime.exporting.targets import ExportTarget
from laptime.lap.timed_loader import Batch
from laptime.machine.device import describe
from laptime.measure import latency
from laptime.record import files as records
from laptime.text import escape_control_chars
from laptime.training.build import network_name

SCHEMA_VERSION = 1
# Packages whose versions export.json records.
_PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "torchao")
_LONGEST_REASON = 200

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _ExportedFile:
    """An exported file, loaded again."""

    target: ExportTarget
    content: bytes
    loaded: Loaded
    layers: list[str]
    predictions: Predictions


def export(
    run: TrainedRun, config: ExportConfig, targets: Sequence[ExportTarget]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Export a run's network.

    Args:
        config: the configuration of the command.
        targets: the files to make. Those whose packages are missing are reported as left out.

    Returns:
        The content of export.json, and the content of each file to keep, by file name.
    """
    threads = use_threads(run, config.threads)
    torch.set_float32_matmul_precision("highest")
    device = describe("cpu", "cpu")
    network, data = run.load(device)
    source = data.data
    assert isinstance(source, ImageData)
    try:
        original = predict(network, _batches(data, config.num_images))
        images, _ = next(iter(data.test_dataloader()))
        with tempfile.TemporaryDirectory() as folder:
            made, failed = _make(network, data, images, config, targets, original, Path(folder))
            kept = [exported for exported in made if _fits(exported, original, config.tolerance, failed)]
            machine = latency.Disturbances()
            timed = _latencies(network, kept, images, config.latency)
            disturbances = machine.reasons() if timed["original"] else []
    finally:
        data.teardown("test")
    report = {
        "schema_version": SCHEMA_VERSION,
        "exported_at": records.now(),
        "run_dir": str(run.path),
        "model": network_name(network),
        "checkpoint": {"path": str(run.checkpoint), **run.trained},
        "device": {"used": device.used, "name": device.name},
        "threads": threads,
        "packages": _versions(),
        "dataset": {"name": source.name, "checksum": data.checksum, "num_images": len(original.labels)},
        "input": {
            "shape": ["batch", *source.image_shape],
            "dtype": "float32",
            "normalisation": "(pixel / 255 - mean) / std, per channel",  # codespell:ignore normalisation
            "mean": list(source.mean),
            "std": list(source.std),
        },
        "trained_precision": run.config["training"]["precision"],
        "has_other_data": run.has_other_data(data),
        "tolerance": config.tolerance,
        "timed": latency.TIMED,
        "disturbances": disturbances,
        "original": {
            "size_bytes": _size_of_weights(network),
            "test_accuracy": original.accuracy,
            "latency": [asdict(timing) for timing in timed["original"]],
        },
        "exports": [_described(exported, original, timed) for exported in kept],
        "failed": failed,
        "left_out": [
            {"name": target.name, "reason": target.missing} for target in targets if target.missing is not None
        ],
    }
    return report, {file_name(exported.target): exported.content for exported in kept}


def file_name(target: ExportTarget) -> str:
    """Return the name of a target's file in export/."""
    return f"model{'.int8' if target.int8 else ''}{SUFFIXES[target.format]}"


def _make(
    network: nn.Module,
    data: DataModule,
    images: Tensor,
    config: ExportConfig,
    targets: Sequence[ExportTarget],
    original: Predictions,
    folder: Path,
) -> tuple[list[_ExportedFile], list[dict[str, str]]]:
    """Make all files. Return the files, and the failures with their reasons. A failure does not stop other formats."""
    made, failed = [], []
    # Two images, because torch.export would make a batch size of 1 a constant.
    example = images[torch.arange(2) % len(images)].clone()
    for target in targets:
        if target.missing is not None:
            continue
        path = folder / file_name(target)
        try:
            if target.int8:
                loaded, layers = int8.EXPORTERS[target.format](network, example, path)
            else:
                loaded, layers = EXPORTERS[target.format](network, example, path), []
            predictions = predict(_any_size(loaded), _batches(data, config.num_images))
        except Exception as error:  # exporters raise many types
            log.debug("%s", target.name, exc_info=True)
            failed.append({"name": target.name, "reason": _reason(error)})
            continue
        made.append(_ExportedFile(target, path.read_bytes(), loaded, layers, predictions))
        if predictions.logits.shape != original.logits.shape:
            made.pop()
            failed.append({"name": target.name, "reason": f"returns logits of shape {tuple(predictions.logits.shape)}"})
    return made, failed


def _any_size(loaded: Loaded) -> Any:
    if loaded.fixed_batch is None:
        return loaded.call
    return lambda images: torch.cat([loaded.call(part) for part in images.split(loaded.fixed_batch)])


def _batches(data: DataModule, num_images: int | None) -> Iterator[Batch]:
    """Yield the first test images. The last is a batch of its own, to test that files accept batches of any size."""
    left = data.num_test if num_images is None else min(num_images, data.num_test)
    for images, labels in data.test_batches(1):
        images, labels = images[:left], labels[:left]
        left -= len(labels)
        head = len(labels) - 1 if left == 0 else len(labels)
        for part in (slice(0, head), slice(head, None)):
            if len(labels[part]):
                yield images[part], labels[part]
        if left == 0:
            return


def difference(predictions: Predictions, original: Predictions) -> float:
    """Return the largest difference of a logit, as a fraction of the original's largest logit."""
    largest = float(original.logits.abs().max())
    largest_difference = float((predictions.logits - original.logits).abs().max())
    return largest_difference / largest if largest else largest_difference


def _fits(made: _ExportedFile, original: Predictions, tolerance: float, failed: list[dict[str, str]]) -> bool:
    """Whether to keep a file. If not, adds the reason to `failed`."""
    relative_difference = difference(made.predictions, original)
    if made.target.int8 or relative_difference <= tolerance:
        return True
    reason = f"its logits differ from the original's by {relative_difference:.1e}, more than tolerance={tolerance:g}"
    failed.append({"name": made.target.name, "reason": reason})
    return False


def _latencies(
    network: nn.Module, made: Sequence[_ExportedFile], images: Tensor, settings: latency.Settings
) -> dict[str, list[latency.Latency]]:
    timed: dict[str, list[latency.Latency]] = {
        name: [] for name in ("original", *(exported.target.name for exported in made))
    }
    for size in settings.batch_sizes:
        networks: dict[str, latency.Call] = {"original": network}
        networks |= {
            exported.target.name: exported.loaded.call
            for exported in made
            if exported.loaded.fixed_batch in (None, size)
        }
        for name, measured in latency.measure(networks, images, size, describe("cpu", "cpu"), settings).items():
            timed[name].append(measured)
    return timed


def _described(
    made: _ExportedFile, original: Predictions, timed: Mapping[str, Sequence[latency.Latency]]
) -> dict[str, Any]:
    by_size = {timing.batch_size: timing for timing in timed["original"]}
    return {
        "name": made.target.name,
        "format": made.target.format,
        "int8": made.target.int8,
        "file": file_name(made.target),
        "size_bytes": len(made.content),
        "batch_size": made.loaded.fixed_batch or "any",
        "difference": difference(made.predictions, original),
        "agreement": int((made.predictions.classes == original.classes).sum()) / len(original.labels),
        "test_accuracy": made.predictions.accuracy,
        "accuracy_cost": original.accuracy - made.predictions.accuracy,
        "int8_layers": made.layers,
        "latency": [
            asdict(timing) | {"speedup": speedup(by_size[timing.batch_size], timing)}
            for timing in timed[made.target.name]
        ],
        "notes": list(made.loaded.notes),
        **made.loaded.details,
    }


def speedup(original: latency.Latency, exported: latency.Latency) -> float:
    """Return the original's time divided by the exported file's, as the median over rounds."""
    return median(a / b for a, b in zip(original.round_p50_s, exported.round_p50_s, strict=True))


def _size_of_weights(network: nn.Module) -> int:
    """Return the bytes of the network's weights in a file that torch saves."""
    content = io.BytesIO()
    torch.save(network.state_dict(), content)
    return len(content.getvalue())


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = escape_control_chars(
        f"{type(error).__name__}: {lines[0]}" if not isinstance(error, ValueError) else lines[0]
    )
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"
