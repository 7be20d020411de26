"""How images come to the device: every pipeline, and copies from pinned memory and from other memory."""

import statistics
import time
from functools import partial
from unittest.mock import patch

import torch

from laptime.data import workers
from laptime.device import describe
from selftest.part import Notes, Setting
from selftest.trainings import TOLERANCE, compared, differs, loss_of, train

_MNIST = (
    "dataset=mnist", "dataset.limit=2000", "training.batch_size=64", "training.epochs=2", "optimizer=sgd",
    "optimizer.lr=0.01", "scheduler=none", "model=mlp",
)  # fmt: skip


def pipelines(setting: Setting, notes: Notes) -> None:
    expected = loss_of(train(setting, "expected", *_MNIST, device="cpu"))
    for pipeline in ("memory", "mapped", "workers"):
        record = train(setting, pipeline, *_MNIST, f"dataset.pipeline={pipeline}")
        _note(notes, f"dataset.pipeline={pipeline}", record, expected)
    pins = setting.kind != "cuda"
    with patch.object(workers, "DataLoader", partial(_loader, pins)):
        record = train(setting, "workers-other", *_MNIST, "dataset.pipeline=workers")
    _note(notes, f"dataset.pipeline=workers {'with' if pins else 'without'} pinned memory", record, expected)


def copies(setting: Setting, notes: Notes) -> None:
    """64 MiB from the host to the device, at once and again."""
    device = describe("auto", setting.kind)
    for name, pinned in (("pageable", False), ("pinned", True)):
        try:
            source = torch.ones(2**24, pin_memory=pinned)
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
        notes.check(f"{name} memory arrives", bool((target == 1).all()), "all elements compared")
        notes.figure(f"copy from {name} memory", source.nbytes / statistics.median(times) / 1e9, "GB/s")


def _loader(pins: bool, *arguments: object, **settings: object) -> object:
    return torch.utils.data.DataLoader(*arguments, **settings | {"pin_memory": pins})  # type: ignore[arg-type]


def _note(notes: Notes, what: str, record: dict, expected: float) -> None:
    loss = loss_of(record)
    notes.check(what, differs(loss, expected) <= TOLERANCE, compared(loss, expected, TOLERANCE))
    notes.figure(f"{what}: throughput", record["timing"]["samples_per_s"], "samples/s")
