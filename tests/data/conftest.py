"""Fixtures that the tests of several data sets share."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from laptime.data.datamodule import DataModule
from laptime.data.image_data import ImageData
from laptime.data.image_datamodule import ImageDataModule
from laptime.data.mnist import MNIST
from laptime.data.synthetic import Synthetic
from laptime.machine.device import Device

# The keys that all data sets share, as conf/dataset_base.yaml has them, without validation set.
SHARED: dict[str, Any] = {
    "root": None,
    "verify": True,
    "val_fraction": 0.0,
    "limit": None,
    "pipeline": "memory",
    "num_workers": 0,
    "horizontal_flip": False,
    "rotation_degrees": 0.0,
}


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary cache folder for every test. macOS finds it through HOME."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return cache


@pytest.fixture(scope="session")
def make() -> Callable[..., ImageData]:
    """make(cls, **changes): a data set with the shared keys filled in."""

    def make_one(cls: type[ImageData], **changes: Any) -> ImageData:
        values = {**SHARED, **changes}
        if values["root"] is not None:
            values["root"] = str(values["root"])
        return cls(**values)

    return make_one


@pytest.fixture(scope="session")
def synthetic(make: Callable[..., ImageData]) -> Callable[..., ImageData]:
    """synthetic(**changes): a small synthetic data set, (1, 6, 5), four classes, 23 + 11 samples."""

    def make_one(**changes: Any) -> ImageData:
        return make(Synthetic, **{"shape": [1, 6, 5], "num_classes": 4, "num_train": 23, "num_test": 11, **changes})

    return make_one


@pytest.fixture(scope="session")
def mnist_root(tmp_path_factory: pytest.TempPathFactory, make: Callable[..., ImageData]) -> Path:
    """A root with MNIST, unpacked once. Tests don't change it."""
    root = tmp_path_factory.mktemp("mnist")
    with pytest.MonkeyPatch.context() as patched:
        for variable in ("XDG_CACHE_HOME", "HOME"):
            patched.setenv(variable, str(tmp_path_factory.mktemp("home")))
        make(MNIST, root=root).load()
    return root


@pytest.fixture(scope="session")
def cpu() -> Device:
    return Device(requested="cpu", used="cpu", name="a processor", num_devices=1, memory_bytes=None)


@pytest.fixture
def datamodule(synthetic: Callable[..., ImageData], cpu: Device) -> Callable[..., DataModule]:
    """datamodule(**changes): of the small synthetic data set; changes to the data set or to the module."""

    def make_one(**changes: Any) -> DataModule:
        mine = ("batch_size", "eval_batch_size", "steps_per_execution", "seed", "rank", "lap_steps")
        arguments = {"batch_size": 5, "eval_batch_size": 4, "steps_per_execution": 1, "seed": 0}
        arguments |= {key: changes.pop(key) for key in mine if key in changes}
        return ImageDataModule(synthetic(**changes), cpu, **arguments)

    return make_one


@pytest.fixture(scope="session")
def idx_bytes() -> Callable[[Tensor], bytes]:
    """idx_bytes(values): a uint8 tensor in the IDX format."""

    def encode(values: Tensor) -> bytes:
        return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.numpy().tobytes()

    return encode


@pytest.fixture
def small_idx(idx_bytes: Callable[[Tensor], bytes]) -> dict[str, bytes]:
    """Four unpacked IDX files by name, 7 + 3 random images of 28 x 28."""
    generator = torch.Generator().manual_seed(0)
    contents = {}
    for part, count in (("train", 7), ("t10k", 3)):
        images = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, 10, (count,), dtype=torch.uint8, generator=generator)
        contents[f"{part}-images-idx3-ubyte"] = idx_bytes(images)
        contents[f"{part}-labels-idx1-ubyte"] = idx_bytes(labels)
    return contents


@pytest.fixture
def packed_root(tmp_path: Path, small_idx: dict[str, bytes]) -> Path:
    """A folder with the files of `small_idx`, each as .gz."""
    root = tmp_path / "packed"
    root.mkdir()
    for name, content in small_idx.items():
        (root / f"{name}.gz").write_bytes(gzip.compress(content))
    return root
