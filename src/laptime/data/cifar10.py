"""CIFAR-10 (Krizhevsky 2009), read from its Python batches, which torchvision downloads."""

import hashlib
import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets import CIFAR10 as TorchvisionCIFAR10
from torchvision.datasets import cifar as torchvision_cifar

from laptime.data import files
from laptime.data.image_data import ImageData, Images
from laptime.errors import UserError


@dataclass(kw_only=True)
class CIFAR10(ImageData):
    """50,000 + 10,000 color images of 32 x 32 in ten classes, in <root>/cifar-10-batches-py."""

    name = "cifar10"
    num_classes = 10
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (3, 32, 32)

    def load(self) -> tuple[Images, Images, str]:
        # `root` may be the folder of the batches or its parent.
        root = self.folder().parent if self.folder().name == TorchvisionCIFAR10.base_folder else self.folder()
        self._fetch_if_absent(root)
        self._verify(root / TorchvisionCIFAR10.base_folder)
        train, test = self._read(root, train=True), self._read(root, train=False)
        digest = hashlib.sha256()
        for part in (train.images, train.labels, test.images, test.labels):
            digest.update(part.numpy().tobytes())
        return train, test, digest.hexdigest()[:16]

    def num_bytes(self) -> int:
        return 60_000 * math.prod(self.image_shape)

    def _fetch_if_absent(self, root: Path) -> None:
        def is_complete() -> bool:
            return all((root / TorchvisionCIFAR10.base_folder / name).is_file() for name, _ in _names_and_md5s())

        if is_complete():
            return
        files.download(
            "CIFAR-10",
            root,
            f"By hand: unpack {TorchvisionCIFAR10.filename} from {TorchvisionCIFAR10.url} in {root} and set "
            f"dataset.root={root}.",
            # Not TorchvisionCIFAR10(download=True), because it unpickles the files, which could run any code.
            lambda folder: torchvision_cifar.download_and_extract_archive(
                TorchvisionCIFAR10.url,
                str(folder),
                filename=TorchvisionCIFAR10.filename,
                md5=TorchvisionCIFAR10.tgz_md5,
            ),
            is_complete,
        )

    def _verify(self, folder: Path) -> None:
        if not self.verify:
            return
        for name, expected in _names_and_md5s():
            actual = hashlib.md5((folder / name).read_bytes()).hexdigest()
            if actual != expected:
                raise UserError(
                    f"dataset: {folder / name} is damaged or not the published file: "
                    f"MD5 {actual}, expected {expected}.\n"
                    "Delete it and run again, or set dataset.verify=false to read your own files."
                )

    def _read(self, root: Path, train: bool) -> Images:
        folder = root / TorchvisionCIFAR10.base_folder
        names = [name for name, _ in (TorchvisionCIFAR10.train_list if train else TorchvisionCIFAR10.test_list)]
        try:
            batches = [_unpickle(folder / name) for name in names]
            pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, *self.image_shape)
            labels = torch.tensor([label for batch in batches for label in batch["labels"]], dtype=torch.int64)
            images = torch.from_numpy(pixels)
        except Exception as error:  # a damaged pickle can fail in any way
            raise UserError(
                f"dataset: {folder} holds no readable CIFAR-10 batches ({type(error).__name__}: {error})."
            ) from error
        if len(images) != len(labels) or images.dtype != torch.uint8:
            raise UserError(f"dataset: {folder}: the numbers of images and labels don't match.")
        return Images(images, labels)


def _names_and_md5s() -> list[tuple[str, str]]:
    """Names and MD5s of CIFAR-10's files, from torchvision."""
    return [(name, md5) for name, md5 in (*TorchvisionCIFAR10.train_list, *TorchvisionCIFAR10.test_list)]


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dicts of lists and NumPy arrays, as in CIFAR's batches, and refuses to call anything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED_CALLABLES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it calls {module}.{name}, which arrays don't need")


_ALLOWED_CALLABLES = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
}


def _unpickle(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        batch: dict[str, Any] = _ArrayUnpickler(file, encoding="latin1").load()
    return batch
