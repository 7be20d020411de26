"""dataset.pipeline=mapped: the same batches from mapped files, and refusals of data that don't fit."""

import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch
from tests.support.processes import until
from tests.support.settings import QUICK, TINY

from laptime.data import files
from laptime.data.cifar10 import CIFAR10
from laptime.data.fashion_mnist import FashionMNIST
from laptime.data.image_datamodule import ImageDataModule
from laptime.data.mnist import MNIST
from laptime.errors import UserError
from laptime.machine import hardware
from laptime.machine.device import Device
from laptime.ranks.rank import Rank
from laptime.record.files import read_epochs, read_record

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def module_of(data, device, rank=None):
    return ImageDataModule(data, device, 64, 100, 4, seed=3, rank=rank or Rank())


def is_mapped(tensor: torch.Tensor) -> bool:
    """Whether the kernel lists its memory as that of a file."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, name = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in addresses.split("-"))
        if start <= tensor.data_ptr() < end:
            return name.startswith("/")
    raise AssertionError("no memory of this process's")


@pytest.mark.parametrize("augmentation", [{}, {"horizontal_flip": True, "rotation_degrees": 15.0}])
@pytest.mark.parametrize("rank", [Rank(), Rank(rank=1, world_size=3)])
def test_mapped_mnist_gives_the_same_batches_as_in_memory(make, mnist_root, cpu, augmentation, rank):
    def batches(pipeline):
        data = make(MNIST, root=mnist_root, pipeline=pipeline, val_fraction=0.2, limit=1000, **augmentation)
        module = module_of(data, cpu, rank)
        return [
            *chain.from_iterable(module.train_dataloader()),
            *module.val_dataloader(),
            *module.test_dataloader(),
        ], module.checksum

    (memory, checksum), (mapped, same_checksum) = batches("memory"), batches("mapped")
    assert checksum == same_checksum
    assert len(memory) == len(mapped) > 8
    for (images, labels), (same_images, same_labels) in zip(memory, mapped, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)


@linux
def test_the_images_are_never_copied_as_a_whole(make, mnist_root, cpu):
    module = module_of(make(MNIST, root=mnist_root, pipeline="mapped", val_fraction=0.2), cpu)
    for part in (module._train, module._val, module._test):
        assert is_mapped(part.images)
    assert module._train.images.data_ptr() == module._val.images.data_ptr()
    assert (module.num_train, module.num_val, module.num_test) == (48_000, 12_000, 10_000)


@linux
def test_the_files_of_synthetic_images_are_created_once(synthetic, cpu, cache_folder):
    memory, mapped = synthetic(), synthetic(pipeline="mapped")
    (train, test, checksum), (same_train, same_test, same_checksum) = memory.load(), mapped.load()
    assert checksum == same_checksum
    for part, same in ((train, same_train), (test, same_test)):
        assert is_mapped(same.images)
        assert torch.equal(part.images, same.images)
        assert torch.equal(part.labels, same.labels)
    (made,) = cache_folder.rglob("train.npy")
    before = made.stat().st_mtime_ns
    assert mapped.load()[2] == checksum
    assert made.stat().st_mtime_ns == before
    assert [path.name for path in made.parents[1].iterdir()] == ["1x6x5-4-23-11"], "nothing half made is left"


def test_several_processes_may_create_them_concurrently(synthetic):
    data = synthetic(pipeline="mapped", num_train=2000)
    with ThreadPoolExecutor(4) as pool:
        checksums = {done[2] for done in pool.map(lambda _: data.load(), range(4))}
    assert len(checksums) == 1


@pytest.mark.parametrize("name", ["train.npy", "labels.npz"])
@pytest.mark.parametrize("left", [0, 100])
def test_a_damaged_file_is_refused_with_a_hint(synthetic, cache_folder, name, left):
    data = synthetic(pipeline="mapped")
    data.load()
    (made,) = cache_folder.rglob(name)
    made.write_bytes(made.read_bytes()[:left])
    with pytest.raises(UserError, match=r"1x6x5-4-23-11 is damaged .*Delete it"):
        data.load()


def test_a_truncated_idx_file_is_refused(make, small_idx, tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    for name, content in small_idx.items():
        (folder / name).write_bytes(content[:-50] if name.startswith("train-images") else content)
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte.* not a complete IDX file"):
        make(FashionMNIST, root=folder, verify=False, pipeline="mapped").load()


def test_data_that_do_not_fit_on_the_disk_are_refused(synthetic, monkeypatch):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: type("usage", (), {"free": 100}))
    with pytest.raises(UserError, match=r"needs 0.0 GB, but only 0.0 GB are free.*dataset.root=DIR"):
        synthetic(pipeline="mapped").load()


def test_data_that_do_not_fit_into_memory_are_refused_with_the_sizes(synthetic, cpu, monkeypatch):
    monkeypatch.setattr(hardware, "available_memory_bytes", lambda: int(20e9))
    fits = synthetic(shape=[3, 1000, 1000], num_train=1000, num_test=1000)
    too_large = synthetic(shape=[3, 1000, 1000], num_train=3000, num_test=1000)
    monkeypatch.setattr(type(fits), "load", lambda self: pytest.fail("nothing is loaded"))
    with pytest.raises(pytest.fail.Exception):
        module_of(fits, cpu)
    for rank, data, message in (
        (
            Rank(),
            too_large,
            "needs 24.0 GB of memory, but only 20.0 GB are free: 12.0 GB of images, ",
        ),
        (
            Rank(world_size=2),
            fits,
            "needs 24.0 GB .* 6.0 GB of images, which are held twice in each of 2 ranks ",
        ),
    ):
        with pytest.raises(UserError, match=message) as caught:
            module_of(data, cpu, rank)
        assert "dataset=synthetic dataset.pipeline=memory" in str(caught.value)
        assert "dataset.pipeline=mapped" in str(caught.value)


def test_data_that_do_not_fit_on_the_device_are_refused(make, mnist_root):
    small = Device(requested="cuda", used="cuda", name="a card", num_devices=1, memory_bytes=10**7)
    with pytest.raises(UserError, match=r"0.1 GB of images don't fit into the cuda device's 0.0 GB.*mapped"):
        module_of(make(MNIST, root=mnist_root), small)


def test_data_that_cannot_be_mapped_are_refused(make):
    with pytest.raises(ValueError, match=r"pipeline=mapped: the files of cifar10 .* Use pipeline=memory"):
        make(CIFAR10, pipeline="mapped")


@pytest.mark.soak
def test_ranks_learn_the_same_from_mapped_files(trained, mnist_root):
    losses = []
    for pipeline in ("memory", "mapped"):
        data = (f"dataset.root={mnist_root}", "dataset.limit=1000", f"dataset.pipeline={pipeline}")
        rows = read_epochs(trained(*QUICK, *data, "training.epochs=2", "strategy.world_size=2"))
        losses.append(rows[["epoch", "rank", "train_loss", "val_loss", "val_accuracy"]])
    pd.testing.assert_frame_equal(*losses, check_exact=True)
    assert Counter(losses[0]["rank"]) == {0: 2, 1: 2}


def images_in_memory(pid: int) -> dict[str, int]:
    """Memory of train.npy in a process, in kB: Rss counts shared pages fully, Pss divides them among processes."""
    sizes: dict[str, int] = {}
    is_ours = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first, *rest = line.split()
        if not first.endswith(":"):
            is_ours = rest[-1].endswith("train.npy")
        elif is_ours and first in ("Rss:", "Pss:"):
            sizes[first[:-1]] = sizes.get(first[:-1], 0) + int(rest[0])
    return sizes


MAPPED = (*TINY, "dataset.pipeline=mapped", "dataset.num_train=20000", "dataset.root=data", "training.epochs=100000",
          "hydra.run.dir=run")  # fmt: skip


@linux
def test_ranks_share_mapped_pages(start, work_folder):
    process = start(*MAPPED, "strategy.world_size=2")
    until(Path("run/epochs.csv").exists, process)
    processes_of_run = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    memory = [sizes for pid in processes_of_run if (sizes := images_in_memory(pid))]
    assert len(memory) == 2
    for kilobytes in memory:  # each rank reads every second of 20,000 images of 64 bytes, so nearly all pages
        assert kilobytes["Rss"] > 1000 and kilobytes["Pss"] < 0.6 * kilobytes["Rss"]


def test_modified_images_are_refused(synthetic, cache_folder):
    made = {"pipeline": "mapped", "root": str(cache_folder)}
    synthetic(**made).load()
    (path,) = cache_folder.rglob("train.npy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged \(its image files were modified.*Delete it"):
        synthetic(**made).load()


@linux
def test_a_file_that_is_truncated_during_training_fails_the_run_with_its_cause(start, work_folder):
    process = start(*MAPPED)
    until(Path("run/epochs.csv").exists, process)
    (path,) = Path("data").rglob("train.npy")
    os.truncate(path, 4096)
    errors = process.communicate()[1]
    record = read_record(Path("run"))
    assert process.returncode == 1 and record["status"] == "failed"
    assert "killed by SIGBUS: its memory-mapped file was truncated" in record["error"]["message"], errors
