"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747).

Source of the checksums: the files of https://github.com/zalandoresearch/fashion-mnist, unpacked from Debian's package.
"""

from dataclasses import dataclass
from pathlib import Path

from laptime.data import files
from laptime.data.idx import IdxData


@dataclass(kw_only=True)
class FashionMNIST(IdxData):
    """60,000 + 10,000 images of clothes."""

    name = "fashion_mnist"
    folder_name = "FashionMNIST"
    packed_folder = Path("/usr/share/datasets/fashion-mnist")
    mean = (0.2860,)
    std = (0.3530,)
    checksums = {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    }

    def download(self) -> None:
        from torchvision.datasets import FashionMNIST as TorchvisionFashionMNIST

        raw = self.folder() / self.folder_name / "raw"
        files.download(
            "Fashion-MNIST",
            self.folder(),
            f"By hand: put its four .gz files in {self.folder()} and set dataset.root={self.folder()}, or install "
            "Debian's package dataset-fashion-mnist.",
            lambda folder: TorchvisionFashionMNIST(str(folder), download=True),
            lambda: all((raw / name).is_file() for name in self.checksums),
        )
