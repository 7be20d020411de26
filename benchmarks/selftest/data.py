"""Data pipelines, and copies from pinned and pageable memory to the device."""

import importlib.util
import statistics
import time
from functools import partial
from unittest.mock import patch

import torch

from laptime.data import workers
from laptime.machine.device import describe
from selftest.part import Notes, Setting, Skipped
from selftest.trainings import check_learned, train

_MNIST = ("dataset=mnist", "dataset.limit=2000")
_SYNTHETIC = ("dataset=synthetic", "dataset.num_train=2000", "dataset.num_test=64")
_TRAINING = (
    "training.batch_size=64", "training.epochs=2", "optimizer=sgd", "optimizer.lr=0.01", "scheduler=none", "model=mlp",
)  # fmt: skip


def pipelines(setting: Setting, notes: Notes) -> None:
    has_torchvision = importlib.util.find_spec("torchvision") is not None
    images = _MNIST if has_torchvision else _SYNTHETIC
    expected = train(setting, "expected", *images, *_TRAINING, device="cpu")

    def compare(name: str, *overrides: str) -> None:
        with notes.attempt(name):
            record = train(setting, name.replace(" ", "-"), *images, *_TRAINING, *overrides)
            check_learned(notes, name, record, expected)
            notes.figure(f"{name}: throughput", record["timing"]["samples_per_s"], "samples/s")

    compare("dataset.pipeline=memory")
    if not has_torchvision:
        raise Skipped("torchvision is not installed: it reads MNIST's files")
    compare("dataset.pipeline=mapped", "dataset.pipeline=mapped")
    compare("dataset.pipeline=workers", "dataset.pipeline=workers")
    if setting.kind == "cpu":
        notes.skip("dataset.pipeline=workers with pinned memory", "pinned memory has no effect on the CPU")
        return
    pins = setting.kind != "cuda"
    with patch.object(workers, "DataLoader", partial(_loader, pins)):
        compare(f"dataset.pipeline=workers {'with' if pins else 'without'} pinned memory", "dataset.pipeline=workers")


def copies(setting: Setting, notes: Notes) -> None:
    """Copy 64 MiB from the host to the device ten times."""
    device = describe("auto", setting.kind)
    for name, pinned in (("pageable", False), ("pinned", True)):
        if pinned and setting.kind == "cpu":
            notes.skip("pinned memory", "pinned memory has no effect on the CPU")
            continue
        try:
            source = torch.arange(2**24, dtype=torch.float32, pin_memory=pinned)
        except (RuntimeError, NotImplementedError) as error:
            notes.skip(f"{name} memory", str(error).partition("\n")[0])
            continue
        target = torch.empty(2**24, device=device.torch_device)
        times = []
        for _ in range(10):
            device.synchronize()
            begin = time.perf_counter()
            target.copy_(source, non_blocking=pinned)
            device.synchronize()
            times.append(time.perf_counter() - begin)
        notes.check(f"{name} memory arrives", torch.equal(target.cpu(), source), "all elements compared")
        notes.figure(f"copy from {name} memory", source.nbytes / statistics.median(times) / 1e9, "GB/s")


def _loader(pins: bool, *arguments: object, **settings: object) -> object:
    return torch.utils.data.DataLoader(*arguments, **settings | {"pin_memory": pins})  # type: ignore[arg-type]
