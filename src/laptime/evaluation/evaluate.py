"""Evaluates a trained run with the batches, precision and threads of its own test, so that the accuracy is the recorded
one; then times the forward pass."""

import math
import os
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from msgspec import to_builtins
from torch import Tensor, nn

from laptime.data.datamodule import DataModule
from laptime.data.image_data import ImageData
from laptime.data.image_datamodule import ImageDataModule
from laptime.errors import UserError, first_line
from laptime.evaluation.confusion import confusion_matrix, per_class
from laptime.evaluation.keys import EvaluateConfig
from laptime.evaluation.predict import Predictions, mean_loss, predict
from laptime.evaluation.trained_run import TrainedRun, use_threads
from laptime.lap.epoch_sums import Means
from laptime.machine.device import Device, check_precision
from laptime.machine.device import resolve as resolve_device
from laptime.machine.torch_build import torch_build
from laptime.measure import latency
from laptime.ranks.preflight import require_compiling
from laptime.record import files as records
from laptime.record.schema import filled
from laptime.tasks.language_modeling import LanguageModeling
from laptime.training.build import network_name
from laptime.training.stepper import autocast

SCHEMA_VERSION = 1
# Sums of float32 in another order may differ by this much.
_LOSS_TOLERANCE = 1e-6


def evaluate(run: TrainedRun, config: EvaluateConfig) -> dict[str, Any]:
    """Evaluate a run.

    Args:
        config: the configuration of the command.

    Returns:
        The plain values of evaluation.json; NaN if a divisor is 0.

    Raises:
        UserError: this machine can't evaluate the run.
    """
    settings = run.config["training"]
    threads = use_threads(run, config.threads)
    requested = config.device or filled(run.record.device).requested
    device = resolve_device(requested, "cpu")
    device.select()
    precision = config.precision or settings["precision"]
    check_precision(precision, device)
    torch.set_float32_matmul_precision(settings["matmul_precision"])
    torch.backends.cudnn.benchmark = settings["cudnn_benchmark"]
    network, data = run.load(device)
    compiled = settings["compile"] if config.compile is None else config.compile
    if compiled:
        _compile(network, len(config.latency.batch_sizes))
    timed_what = latency.TIMED if isinstance(data, ImageDataModule) else latency.TIMED_TEXT
    try:
        measured = (_of_images if isinstance(data, ImageDataModule) else _of_text)(
            run, network, data, device, precision
        )
        interference = latency.Disturbances()
        timed = _latency(network, data, device, precision, config.latency)
        disturbances = interference.reasons() if timed else []
    except Exception as error:
        if not compiled or isinstance(error, UserError) or not type(error).__module__.startswith("torch._"):
            raise
        reason = first_line(error)
        raise UserError(f"compile=true: torch can't compile the network here ({reason}). Use compile=false.") from error
    finally:
        data.teardown("test")
    return {
        "schema_version": SCHEMA_VERSION,
        "evaluated_at": records.now(),
        "run_dir": str(run.path),
        "model": network_name(network),
        "checkpoint": {"path": str(run.checkpoint), **run.trained},
        "device": {"requested": requested, "used": device.used, "name": device.name},
        "precision": precision,
        "matmul_precision": settings["matmul_precision"],
        "compile": compiled,
        "threads": threads,
        "torch": torch_build(),
        "dataset": {"name": data.data.name, "num_test": data.num_test, "checksum": data.checksum},
        **measured,
        "latency": {"timed": timed_what, "disturbances": disturbances, "batch_sizes": timed},
    }


def _of_images(run: TrainedRun, network: nn.Module, data: DataModule, device: Device, precision: str) -> dict[str, Any]:
    """Return the figures of a classification, and those that the run recorded."""
    predictions = predict(network, data.test_batches(run.world_size), lambda: autocast(precision, device))
    source = data.data
    assert isinstance(source, ImageData)
    matrix = confusion_matrix(predictions.labels.numpy(), predictions.classes.numpy(), source.num_classes)
    classes = per_class(matrix)
    return {
        "result": {"test_accuracy": predictions.accuracy, "test_loss": predictions.loss},
        "recorded": _recorded(run, predictions, data, device, precision),
        "macro": {key: float(np.mean(classes[key])) for key in ("precision", "recall", "f1")},
        "per_class": classes.to_dict("records"),
        "confusion_matrix": matrix.tolist(),
    }


def _of_text(run: TrainedRun, network: nn.Module, data: DataModule, device: Device, precision: str) -> dict[str, Any]:
    """Return the loss and the score of a language model, and those that the run recorded."""
    task = LanguageModeling()
    loss = mean_loss(network, data.test_batches(run.world_size), task.loss, lambda: autocast(precision, device))
    recorded, reasons = run.record.result, _why_not_compared(run, data, device, precision)
    if recorded.test_loss is None:
        reasons.insert(0, "the run recorded no loss")
    return {
        "result": {"test_score": task.score_of(Means(loss, None, data.num_test)), "test_loss": loss},
        "recorded": {
            "test_score": recorded.test_score,
            "test_loss": recorded.test_loss,
            "is_equal": None if reasons else math.isclose(loss, recorded.test_loss or 0.0, rel_tol=_LOSS_TOLERANCE),
            "why_not_compared": reasons,
        },
        "score": to_builtins(run.record.score),
    }


def _compile(network: nn.Module, num_batch_sizes: int) -> None:
    require_compiling("compile", os.environ)
    # One graph per batch size. Beyond its limit, torch would run the rest without compiling.
    torch._dynamo.config.recompile_limit = 8 + num_batch_sizes
    network.compile(dynamic=False)


def _latency(
    network: nn.Module, data: DataModule, device: Device, precision: str, settings: latency.Settings
) -> list[dict[str, Any]]:
    images, _ = next(iter(data.test_dataloader()))

    def forward(batch: Tensor) -> Tensor:
        with autocast(precision, device):
            logits: Tensor = network(batch)
        return logits

    measure = partial(latency.measure, {"network": forward}, images, device=device, settings=settings)
    return [asdict(measure(batch_size=size)["network"]) for size in settings.batch_sizes]


def _recorded(
    run: TrainedRun, predictions: Predictions, data: DataModule, device: Device, precision: str
) -> dict[str, Any]:
    """Return the accuracy that the run recorded, and whether it is equal to this one (None: not comparable).

    The run tested the weights of its last checkpoint, unless a time limit stopped it in a later epoch.
    """
    result = run.record.result
    accuracy = result.test_accuracy
    reasons = ["the run recorded no accuracy"] if accuracy is None else []
    reasons += _why_not_compared(run, data, device, precision)
    hits = None if accuracy is None else round(accuracy * len(predictions.labels))
    return {
        "test_accuracy": accuracy,
        "test_loss": result.test_loss,
        "is_equal": None if reasons else accuracy == predictions.accuracy,
        "num_images_apart": None if reasons or hits is None else round(predictions.accuracy * data.num_test) - hits,
        "why_not_compared": reasons,
    }


def _why_not_compared(run: TrainedRun, data: DataModule, device: Device, precision: str) -> list[str]:
    """Return why the recorded result can differ from that of this evaluation."""
    reasons, used = [], filled(run.record.device).used
    if not run.is_last:
        reasons.append("the run tested its last checkpoint")
    if run.record.result.stop_reason == "time_limit":
        reasons.append("the run tested the weights at its time limit, in the middle of an epoch")
    if run.has_other_data(data):
        reasons.append("the data differ")
    if used != device.used:
        reasons.append(f"the run used {used}")
    if run.config["training"]["precision"] != precision:
        reasons.append(f"the run used training.precision={run.config['training']['precision']}")
    return reasons
