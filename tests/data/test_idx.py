"""MNIST and Fashion-MNIST: finding, unpacking, verifying and reading their files."""

import gzip
import hashlib
import os
import resource
import socket
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from tests.support.processes import until

from laptime.data import files
from laptime.data.fashion_mnist import FashionMNIST
from laptime.data.idx import TEST_FILES, TRAIN_FILES
from laptime.data.mnist import MNIST
from laptime.errors import UserError

NAMES = (*TRAIN_FILES, *TEST_FILES)
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
has_debian_package = pytest.mark.skipif(not DEBIAN_FOLDER.is_dir(), reason="Debian's dataset-fashion-mnist is absent")


@pytest.fixture(scope="module")
def mnist(mnist_root, make):
    return make(MNIST, root=mnist_root).load()


@pytest.fixture
def linked_root(tmp_path, mnist_root):
    """A root whose unpacked files are links to those of `mnist_root`, so that a test can replace one."""
    raw = tmp_path / "linked" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in NAMES:
        (raw / name).symlink_to(mnist_root / "MNIST" / "raw" / name)
    return tmp_path / "linked"


@pytest.fixture
def no_packed_files(tmp_path, monkeypatch):
    """A machine without the packed files of either data set."""
    for cls in (MNIST, FashionMNIST):
        monkeypatch.setattr(cls, "packed_folder", tmp_path / "absent")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", refuse)


def test_mnist_has_the_official_counts_and_shapes(mnist):
    train, test, _ = mnist
    assert train.images.shape == (60_000, 1, 28, 28)
    assert test.images.shape == (10_000, 1, 28, 28)
    assert (len(train), len(test)) == (60_000, 10_000)


def test_mnist_is_uint8_with_int64_labels(mnist):
    for part in mnist[:2]:
        assert (part.images.dtype, part.labels.dtype) == (torch.uint8, torch.int64)


def test_mnist_has_the_published_class_sizes(mnist):
    assert mnist[0].labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist[1].labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_mnist_mean_and_std_match_its_training_set(mnist):
    pixels = mnist[0].images.double() / 255
    assert (pixels.mean().item(), pixels.std().item()) == pytest.approx((*MNIST.mean, *MNIST.std), abs=5e-5)


def test_mnist_is_unpacked_into_root(mnist_root):
    assert sorted(path.name for path in (mnist_root / "MNIST" / "raw").iterdir()) == sorted(NAMES)


def test_mnist_without_root_is_unpacked_into_the_cache_folder(cache_folder, make):
    make(MNIST).load()
    assert {path.name for path in cache_folder.rglob("*-ubyte")} == set(NAMES)


def test_second_load_reads_the_unpacked_files(mnist_root, mnist, make, no_packed_files):
    train, _, checksum = make(MNIST, root=mnist_root).load()
    assert checksum == mnist[2]
    assert torch.equal(train.labels, mnist[0].labels)


def test_checksum_is_the_same_with_and_without_verifying(mnist_root, mnist, make):
    assert make(MNIST, root=mnist_root, verify=False).load()[2] == mnist[2]


def test_missing_packed_files_are_a_broken_installation(tmp_path, make, no_packed_files):
    with pytest.raises(UserError, match="Install Laptime again"):
        make(MNIST, root=tmp_path / "root").load()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["truncated", "bit flipped"])
def test_damaged_unpacked_file_is_named_with_both_checksums(name, damage, linked_root, make):
    path = linked_root / "MNIST" / "raw" / name
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        del content[-1]
    else:
        content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        make(MNIST, root=linked_root).load()
    for part in (str(path), hashlib.sha256(content).hexdigest(), MNIST.checksums[name]):
        assert part in str(caught.value)


def test_truncated_unpacked_file_is_refused_even_without_verifying(linked_root, make):
    path = linked_root / "MNIST" / "raw" / TRAIN_FILES[0]
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1])
    with pytest.raises(UserError, match=TRAIN_FILES[0]):
        make(MNIST, root=linked_root, verify=False).load()


@pytest.mark.parametrize("kept", [0, 5, 15, 5000, -4], ids=lambda kept: f"[:{kept}]")
def test_truncated_gz_is_refused_by_name(kept, tmp_path, make):
    packed = tmp_path / "root" / f"{TRAIN_FILES[0]}.gz"
    packed.parent.mkdir()
    packed.write_bytes((MNIST.packed_folder / packed.name).read_bytes()[:kept])
    with pytest.raises(UserError) as caught:
        make(MNIST, root=packed.parent).load()
    assert str(packed) in str(caught.value)


def test_gz_with_a_flipped_bit_is_refused_by_name(tmp_path, make):
    packed = tmp_path / "root" / f"{TRAIN_FILES[0]}.gz"
    packed.parent.mkdir()
    content = bytearray((MNIST.packed_folder / packed.name).read_bytes())
    content[len(content) // 2] ^= 16
    packed.write_bytes(content)
    with pytest.raises(UserError) as caught:
        make(MNIST, root=packed.parent).load()
    assert str(packed) in str(caught.value)


def test_valid_gz_with_other_content_is_named_with_both_checksums(packed_root, small_idx, make):
    name = TRAIN_FILES[0]
    with pytest.raises(UserError) as caught:
        make(MNIST, root=packed_root).load()
    for part in (f"{packed_root / name}.gz", hashlib.sha256(small_idx[name]).hexdigest(), MNIST.checksums[name]):
        assert part in str(caught.value)


def test_refused_gz_leaves_no_unpacked_file(packed_root, make):
    before = sorted(packed_root.glob("*"))
    with pytest.raises(UserError):
        make(MNIST, root=packed_root).load()
    assert sorted(path for path in packed_root.rglob("*") if path.is_file()) == before


def test_own_packed_files_are_read_as_written(packed_root, small_idx, make):
    train, test, _ = make(FashionMNIST, root=packed_root, verify=False).load()
    for part, (images_name, labels_name) in ((train, TRAIN_FILES), (test, TEST_FILES)):
        assert part.images.numpy().tobytes() == small_idx[images_name][16:]
        assert part.labels.to(torch.uint8).numpy().tobytes() == small_idx[labels_name][8:]
        assert part.images.shape == (len(part.labels), 1, 28, 28)


def test_other_data_have_another_checksum(packed_root, tmp_path, idx_bytes, make):
    before = make(FashionMNIST, root=packed_root, verify=False).load()[2]
    labels = packed_root / "FashionMNIST" / "raw" / TEST_FILES[1]
    labels.write_bytes(idx_bytes(torch.tensor([1, 2, 3], dtype=torch.uint8)))
    assert make(FashionMNIST, root=packed_root, verify=False).load()[2] != before


def test_images_of_another_size_are_refused_by_name(packed_root, idx_bytes, make):
    path = packed_root / TRAIN_FILES[0]
    path.write_bytes(idx_bytes(torch.zeros(7, 27, 28, dtype=torch.uint8)))
    with pytest.raises(UserError, match=r"27, 28.*expected \(N, 28, 28\)") as caught:
        make(FashionMNIST, root=packed_root, verify=False).load()
    assert str(path) in str(caught.value)


def test_different_numbers_of_labels_and_images_are_refused(packed_root, idx_bytes, make):
    (packed_root / TRAIN_FILES[1]).write_bytes(idx_bytes(torch.zeros(6, dtype=torch.uint8)))
    with pytest.raises(UserError, match="6 labels"):
        make(FashionMNIST, root=packed_root, verify=False).load()


def test_idx_file_with_another_dtype_is_refused_by_name(packed_root, make):
    # 0x0D: float32; one image of 1 x 1.
    content = bytes([0, 0, 0x0D, 3, *[0, 0, 0, 1] * 3, 0, 0, 0, 0])
    (packed_root / TRAIN_FILES[0]).write_bytes(content)
    with pytest.raises(UserError, match=TRAIN_FILES[0]):
        make(FashionMNIST, root=packed_root, verify=False).load()


def test_idx_file_with_an_unknown_dtype_is_refused_by_name(packed_root, make):
    (packed_root / TRAIN_FILES[0]).write_bytes(bytes([0, 0, 10, 3, *[0, 0, 0, 1] * 3, 0]))
    with pytest.raises(UserError, match=TRAIN_FILES[0]):
        make(FashionMNIST, root=packed_root, verify=False).load()


def test_root_that_cannot_be_written_is_a_users_mistake(tmp_path, packed_root, make, monkeypatch):
    monkeypatch.setattr(FashionMNIST, "packed_folder", packed_root)
    (tmp_path / "root").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"dataset\.root"):
        make(FashionMNIST, root=tmp_path / "root", verify=False).load()


def test_published_files_go_to_the_cache_folder_where_root_cannot_be_written(tmp_path, cache_folder, make, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    make(MNIST, root=tmp_path / "root").load()
    assert {path.name for path in cache_folder.rglob("*-ubyte")} == set(NAMES)
    assert not (tmp_path / "root").exists()


def test_a_file_that_cannot_be_written_completely_is_a_users_mistake_and_leaves_no_files(packed_root, make):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # bytes per file; the images are larger
    try:
        with pytest.raises(UserError, match=r"File too large.*dataset\.root=DIR"):
            make(FashionMNIST, root=packed_root, verify=False).load()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list((packed_root / "FashionMNIST" / "raw").iterdir()) == []


def test_refused_gz_leaves_no_file_open(packed_root, make, monkeypatch):
    handles = []
    mkstemp = tempfile.mkstemp

    def remember(*args, **kwargs):
        handle, name = mkstemp(*args, **kwargs)
        handles.append(handle)
        return handle, name

    monkeypatch.setattr(tempfile, "mkstemp", remember)
    with pytest.raises(UserError):
        make(MNIST, root=packed_root).load()
    for handle in handles:
        with pytest.raises(OSError):
            os.fstat(handle)


@has_debian_package
def test_installed_fashion_mnist_has_the_official_counts(tmp_path, make):
    train, test, _ = make(FashionMNIST, root=tmp_path / "root").load()
    assert train.labels.bincount().tolist() == [6000] * 10
    assert test.labels.bincount().tolist() == [1000] * 10
    assert train.images.shape == (60_000, 1, 28, 28)
    pixels = train.images.double() / 255
    assert (pixels.mean().item(), pixels.std().item()) == pytest.approx(
        (*FashionMNIST.mean, *FashionMNIST.std), abs=5e-5
    )


def test_concurrent_threads_unpack_each_file_once(packed_root, make, monkeypatch):
    count = 4
    barrier = threading.Barrier(count, timeout=60)
    unpacked = []
    decompress, unpack = gzip.decompress, files.unpack

    def unpack_together(*arguments):
        if not unpacked:
            barrier.wait()  # continue when all threads have found no file
        unpack(*arguments)

    def count_and_decompress(content):
        unpacked.append(len(content))
        return decompress(content)

    monkeypatch.setattr(files, "unpack", unpack_together)
    monkeypatch.setattr(gzip, "decompress", count_and_decompress)
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(make(FashionMNIST, root=packed_root, verify=False).load) for _ in range(count)]
    assert len({future.result()[2] for future in futures}) == 1
    assert {path.name for path in (packed_root / "FashionMNIST" / "raw").iterdir()} == set(NAMES)
    assert len(unpacked) == len(NAMES)


def test_processes_that_unpack_one_file_concurrently_all_succeed(start, tmp_path):
    name, ready = TEST_FILES[0], tmp_path / "ready"
    target = tmp_path / "root" / "raw" / name
    ready.mkdir()
    script = Path(__file__).with_name("unpack_with_others.py")
    arguments = [MNIST.packed_folder / f"{name}.gz", target, MNIST.checksums[name], ready]
    processes = [start(*arguments, script=script) for _ in range(4)]
    for process in processes:
        until((ready / str(process.pid)).exists, process)
    (ready / "go").touch()
    assert [(process.wait(), process.communicate()[1]) for process in processes] == [(0, "")] * 4
    assert list(target.parent.iterdir()) == [target]
    assert files.sha256(target) == MNIST.checksums[name]


def test_failed_download_names_the_files_and_offline_alternatives(tmp_path, make, no_packed_files, no_network):
    root = tmp_path / "root"
    with pytest.raises(UserError) as caught:
        make(FashionMNIST, root=root).load()
    for part in ("Fashion-MNIST", ".gz", f"dataset.root={root}", "dataset=mnist", "dataset=synthetic"):
        assert part in str(caught.value)


def test_failed_download_gives_the_reason(tmp_path, make, no_packed_files, no_network):
    with pytest.raises(UserError, match="Name or service not known"):
        make(FashionMNIST, root=tmp_path / "root").load()


def test_failed_download_restores_the_socket_timeout(tmp_path, make, no_packed_files, no_network):
    before = socket.getdefaulttimeout()
    with pytest.raises(UserError):
        make(FashionMNIST, root=tmp_path / "root").load()
    assert socket.getdefaulttimeout() == before


def test_only_the_download_itself_has_a_socket_timeout(tmp_path):
    seen = []

    def is_complete():
        seen.append(socket.getdefaulttimeout())
        return False

    def fetch(folder):
        seen.append(socket.getdefaulttimeout())

    files.download("x", tmp_path, "", fetch, is_complete)
    before = socket.getdefaulttimeout()
    assert seen == [before, files.CONNECT_TIMEOUT_S] and before != files.CONNECT_TIMEOUT_S


def test_interrupted_download_does_not_block_the_next_one(tmp_path, make, no_packed_files, monkeypatch):
    attempts = []

    def break_off(url, download_root, filename, md5):
        attempts.append(filename)
        (Path(download_root) / filename).write_bytes(b"\x1f\x8b\x08")
        raise TimeoutError("timed out")

    monkeypatch.setattr("torchvision.datasets.mnist.download_and_extract_archive", break_off)
    for _ in range(2):
        with pytest.raises(UserError):
            make(FashionMNIST, root=tmp_path / "root").load()
    assert len(attempts) == 2
