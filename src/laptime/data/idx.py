"""Data sets in MNIST's format: four IDX files, packed or unpacked, which are verified.

Source: https://yann.lecun.com/exdb/mnist/ (format).
"""

import hashlib
import math
from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from laptime.data import files
from laptime.data.image_data import ImageData, Images, cache_dir
from laptime.errors import UserError

_IMAGES, _LABELS = 0x803, 0x801
TRAIN_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST_FILES = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


@dataclass(kw_only=True)
class IdxData(ImageData):
    """Gray images of 28 x 28 in ten classes, in four IDX files, unpacked in <root>/<folder_name>/raw.

    Attributes:
        folder_name: the name of the data set's folder in torchvision.
        packed_folder: another folder than `root` where the packed files may be.
        checksums: the SHA-256 of each unpacked file.
    """

    folder_name: ClassVar[str]
    packed_folder: ClassVar[Path]
    checksums: ClassVar[dict[str, str]]
    num_classes = 10
    mappable = True
    _paths: dict[str, Path] = field(default_factory=dict, init=False, repr=False)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return (1, 28, 28)

    @abstractmethod
    def download(self) -> None:
        """Download the files to `root`.

        Raises:
            UserError: the download failed.
        """

    def load(self) -> tuple[Images, Images, str]:
        paths = self._verified_paths()
        digests = [self.checksums[name] if self.verify else files.sha256(path) for name, path in paths.items()]
        train, test = (self._read(*(paths[name] for name in names)) for names in (TRAIN_FILES, TEST_FILES))
        return train, test, hashlib.sha256("".join(digests).encode()).hexdigest()[:16]

    def num_bytes(self) -> int:
        return sum(self._verified_paths()[images].stat().st_size for images, _ in (TRAIN_FILES, TEST_FILES))

    def _verified_paths(self) -> dict[str, Path]:
        """The paths of the four verified files, by name."""
        if not self._paths:
            self._paths = {name: self._find(name) for name in (*TRAIN_FILES, *TEST_FILES)}
        return self._paths

    def _find(self, name: str) -> Path:
        """Return the path of a verified, unpacked file. Unpack or download it if necessary."""
        raw = Path(self.folder_name) / "raw"
        folders = [self.folder() / raw, self.folder()]
        for folder in [*folders, cache_dir() / raw] if self.verify else folders:
            if (folder / name).is_file():
                return self._verify(folder / name)
        for folder in (*folders, self.packed_folder):
            packed = folder / f"{name}.gz"
            if packed.is_file():
                return self._unpack(packed, name)
        self.download()
        return self._verify(self.folder() / raw / name)

    def _verify(self, path: Path) -> Path:
        if self.verify:
            files.check(path, self.checksums[path.name])
        return path

    def _unpack(self, packed: Path, name: str) -> Path:
        target = self.folder() / self.folder_name / "raw" / name
        if not self.verify:
            files.unpack(packed, target, None)
            return target
        if not files.is_writable(target.parent):
            target = cache_dir() / self.folder_name / "raw" / name
        files.unpack(packed, target, self.checksums[name])
        return target

    def _read(self, images_path: Path, labels_path: Path) -> Images:
        try:
            images = _read(images_path, _IMAGES, is_mapped=self.pipeline == "mapped")
            labels = _read(labels_path, _LABELS)
        except (ValueError, OSError) as error:
            raise UserError(
                f"dataset: {images_path} or {labels_path.name} is not a complete IDX file ({error})."
            ) from error
        if images.shape[1:] != self.image_shape[1:] or len(images) != len(labels):
            raise UserError(
                f"dataset: {images_path} has images of shape {tuple(images.shape)} for {len(labels)} labels; "
                f"expected (N, {self.image_shape[1]}, {self.image_shape[2]}) and N labels."
            )
        return Images(images.unsqueeze(1), labels.to(torch.int64))


def _read(path: Path, magic: int, is_mapped: bool = False) -> torch.Tensor:
    """The content of an IDX file of bytes, uint8; of an image file (N, H, W), of a label file (N,).

    Args:
        magic: the number that the file must begin with; its last byte is the number of dimensions.
        is_mapped: map the file to memory, so that pages are read when they are needed.

    Raises:
        ValueError: the file begins with another number, or its size is not the one that its header says.
    """
    num_dimensions = magic & 0xFF
    header_bytes = 4 * (1 + num_dimensions)
    first, *shape = np.fromfile(path, ">i4", 1 + num_dimensions).tolist() or [None]
    if first != magic or path.stat().st_size != header_bytes + math.prod(shape):
        raise ValueError(f"magic number {first}, shape {shape}, {path.stat().st_size} bytes")
    if is_mapped:  # mode "c" (copy on write), because torch requires writable memory; it is never written
        return torch.from_numpy(np.memmap(path, np.uint8, "c", header_bytes, tuple(shape)))
    return torch.from_numpy(np.fromfile(path, np.uint8, offset=header_bytes).reshape(shape))
