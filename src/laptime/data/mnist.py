"""MNIST (LeCun, Cortes and Burges 1998). It is part of Laptime and never downloaded.

Source of the checksums: the published files. torchvision's MD5s are of the gzip files, which depend on the compression.
"""

from dataclasses import dataclass
from pathlib import Path

from laptime.data.idx import IdxData
from laptime.errors import UserError


@dataclass(kw_only=True)
class MNIST(IdxData):
    """60,000 + 10,000 handwritten digits."""

    name = "mnist"
    folder_name = "MNIST"
    packed_folder = Path(__file__).parent / "mnist_files"
    mean = (0.1307,)
    std = (0.3081,)
    checksums = {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    }

    def download(self) -> None:
        raise UserError(
            f"dataset=mnist: {self.packed_folder} lacks files that come with Laptime. Install Laptime again."
        )
