"""CIFAR-10, with small files in its format that the tests write."""

import concurrent.futures
import hashlib
import http.server
import pickle
import shutil
import tarfile
import threading
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10 as TorchvisionCIFAR10

from laptime.data.cifar10 import CIFAR10
from laptime.errors import UserError

pytestmark = pytest.mark.unit

TRAIN_BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
PER_BATCH = 4


def batch(seed):
    """The content of one of CIFAR-10's pickles: rows of 1024 red, 1024 green and 1024 blue values, and labels."""
    random = np.random.default_rng(seed)
    return {
        "batch_label": f"batch {seed}",
        "labels": [int(label) for label in random.integers(0, 10, PER_BATCH)],
        "data": random.integers(0, 256, (PER_BATCH, 3072), dtype=np.uint8),
        "filenames": [f"{seed}_{index}.png" for index in range(PER_BATCH)],
    }


@pytest.fixture
def folder(tmp_path):
    """A cifar-10-batches-py of 5 x 4 + 4 images."""
    folder = tmp_path / "root" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for seed, name in enumerate([*TRAIN_BATCHES, "test_batch"]):
        (folder / name).write_bytes(pickle.dumps(batch(seed), protocol=2))
    meta = {"label_names": [f"class {number}" for number in range(10)], "num_cases_per_batch": PER_BATCH}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return folder


@pytest.fixture
def published(folder, monkeypatch):
    """Makes the files in `folder` the published ones; returns their MD5s by name."""
    md5s = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkeypatch.setattr(TorchvisionCIFAR10, "train_list", [[name, md5s[name]] for name in TRAIN_BATCHES])
    monkeypatch.setattr(TorchvisionCIFAR10, "test_list", [["test_batch", md5s["test_batch"]]])
    return md5s


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)


def test_own_files_have_their_counts_shape_and_dtypes(folder, make):
    train, test, _ = make(CIFAR10, root=folder.parent, verify=False).load()
    assert (train.images.shape, test.images.shape) == ((20, 3, 32, 32), (4, 3, 32, 32))
    assert (train.images.dtype, train.labels.dtype) == (torch.uint8, torch.int64)


def test_images_and_labels_are_in_the_order_of_the_files(folder, make):
    train, test, _ = make(CIFAR10, root=folder.parent, verify=False).load()
    pixels = np.concatenate([batch(seed)["data"] for seed in range(5)])
    assert np.array_equal(train.images.flatten(1).numpy(), pixels)
    assert train.labels.tolist() == [label for seed in range(5) for label in batch(seed)["labels"]]
    assert test.labels.tolist() == batch(5)["labels"]


def test_published_files_are_read(folder, published, make):
    assert len(make(CIFAR10, root=folder.parent).load()[0]) == 20


def test_root_may_be_the_folder_of_the_batches(folder, published, make):
    inside, above = (make(CIFAR10, root=root).load() for root in (folder, folder.parent))
    assert inside[2] == above[2]
    assert torch.equal(inside[0].images, above[0].images)


def test_other_data_have_another_checksum(folder, make):
    before = make(CIFAR10, root=folder.parent, verify=False).load()[2]
    (folder / "test_batch").write_bytes(pickle.dumps(batch(99)))
    assert make(CIFAR10, root=folder.parent, verify=False).load()[2] != before


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
def test_file_with_another_md5_is_named_with_both(name, folder, published, make):
    content = pickle.dumps(batch(99), protocol=2)
    (folder / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        make(CIFAR10, root=folder.parent).load()
    for part in (str(folder / name), hashlib.md5(content).hexdigest(), published[name]):
        assert part in str(caught.value)


@pytest.mark.parametrize("kept", [0, 1, 100, -1], ids=lambda kept: f"[:{kept}]")
def test_truncated_pickle_is_refused(kept, folder, make):
    path = folder / "data_batch_2"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match="no readable CIFAR-10"):
        make(CIFAR10, root=folder.parent, verify=False).load()


@pytest.mark.parametrize(
    "content",
    [b"not a pickle", b"\x89PNG\r\n\x1a\n" + bytes(64), b"cno_such_module\nThing\n.", pickle.dumps([1, 2]), b"."],
    ids=["text", "another format", "class of an absent module", "a list", "an empty stack"],
)
def test_file_with_other_content_is_refused(content, folder, make):
    (folder / "data_batch_2").write_bytes(content)
    with pytest.raises(UserError):
        make(CIFAR10, root=folder.parent, verify=False).load()


def test_different_numbers_of_labels_and_images_are_refused(folder, make):
    (folder / "test_batch").write_bytes(pickle.dumps(batch(5) | {"labels": [1]}))
    with pytest.raises(UserError, match="don't match"):
        make(CIFAR10, root=folder.parent, verify=False).load()


def test_rows_of_another_length_are_refused(folder, make):
    (folder / "test_batch").write_bytes(pickle.dumps(batch(5) | {"data": np.zeros((4, 3071), np.uint8)}))
    with pytest.raises(UserError, match="no readable CIFAR-10"):
        make(CIFAR10, root=folder.parent, verify=False).load()


def test_failed_download_names_the_files_and_offline_alternatives(tmp_path, make, no_network):
    root = tmp_path / "elsewhere"
    with pytest.raises(UserError) as caught:
        make(CIFAR10, root=root).load()
    named = ("CIFAR-10", "cifar-10-python.tar.gz", f"dataset.root={root}", "dataset=mnist", "dataset=synthetic")
    for part in (*named, "Name or service not known"):
        assert part in str(caught.value)


def test_a_missing_batch_starts_a_download(folder, make, no_network):
    (folder / "data_batch_4").unlink()
    with pytest.raises(UserError, match="could not be downloaded"):
        make(CIFAR10, root=folder.parent).load()


class Malicious:
    def __reduce__(self):
        return (Path.mkdir, (Path("owned"),))


@pytest.mark.parametrize("where", ["in a batch", "instead of it"])
def test_a_batch_never_runs_code(where, folder, make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil = Malicious() if where == "instead of it" else batch(0) | {"more": Malicious()}
    (folder / "data_batch_1").write_bytes(pickle.dumps(evil, protocol=2))
    with pytest.raises(UserError, match=r"holds no readable CIFAR-10 batches .*which arrays don't need"):
        make(CIFAR10, root=folder.parent, verify=False).load()
    assert not (tmp_path / "owned").exists()


@pytest.fixture
def archive(folder, published, tmp_path, monkeypatch):
    """A local web server: the names of its answers, in order, and the list of answers that it has given."""
    packed = tmp_path / "cifar.tar.gz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(folder, arcname="cifar-10-batches-py")
    whole = packed.read_bytes()
    shutil.rmtree(folder)
    answers, given = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            # torchvision sends two requests per file: the first finds its location.
            given.append(answers[min(len(given) // 2, len(answers) - 1)])
            content = {"whole": whole, "cut": whole[:500], "other": b"<html>not found</html>"}[given[-1]]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(TorchvisionCIFAR10, "url", f"http://127.0.0.1:{server.server_port}/cifar.tar.gz")
    monkeypatch.setattr(TorchvisionCIFAR10, "tgz_md5", hashlib.md5(whole).hexdigest())
    yield answers, given
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_download_is_repeated_once(damage, archive, folder, make, caplog):
    answers, given = archive
    answers += [damage, "whole"]
    train, test, _ = make(CIFAR10, root=folder.parent).load()
    assert (len(train), len(test)) == (5 * PER_BATCH, PER_BATCH)
    assert given[::2] == [damage, "whole"]
    assert "is damaged" in caplog.text
    assert not list(folder.parent.glob(".download-*"))


def test_a_download_that_is_damaged_twice_is_refused_and_leaves_no_files(archive, folder, make):
    answers, given = archive
    answers.append("cut")
    with pytest.raises(UserError, match=r"CIFAR-10 could not be downloaded .*corrupted"):
        make(CIFAR10, root=folder.parent).load()
    assert given[::2] == ["cut", "cut"]
    assert list(folder.parent.iterdir()) == []


def test_concurrent_loads_download_once(archive, folder, make):
    answers, given = archive
    answers.append("whole")
    sets = [make(CIFAR10, root=folder.parent) for _ in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        sums = {checksum for _, _, checksum in pool.map(lambda data: data.load(), sets)}
    assert len(sums) == 1 and given == ["whole"] * 2
