"""Which files an export is to make, and whether the packages for them are here. Imports none of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from laptime.errors import UserError
from laptime.evaluation.keys import FORMATS
from laptime.extras import install_command, is_installed

_PACKAGES = {
    ("onnx", False): ("onnx", "onnxscript", "onnxruntime"),
    ("onnx", True): ("onnx", "onnxscript", "onnxruntime"),
    ("torch_export", True): ("torchao",),
}


@dataclass(frozen=True)
class ExportTarget:
    """One file.

    Attributes:
        format: onnx, torch_export or torchscript.
        int8: whether its linear layers are to compute in int8.
        missing: the packages that it lacks, in words; None: none.
    """

    format: str
    int8: bool
    missing: str | None = None

    @property
    def name(self) -> str:
        """For the tables."""
        return f"{self.format} int8" if self.int8 else self.format


def wanted(formats: Sequence[str], int8: bool) -> list[ExportTarget]:
    """The files to make, each beside its int8 variant.

    Args:
        formats: as typed; all: those whose packages are here, the others with what they lack.
        int8: whether that variant is asked for.

    Raises:
        UserError: a format that was named lacks a package.
    """
    named = [each for each in formats if each != "all"]
    made = []
    for format in FORMATS if "all" in formats else dict.fromkeys(named):
        for variant in (False, True) if int8 else (False,):
            missing = _missing(format, variant)
            if missing is not None and format in named:
                typed = f"format={format}{' int8=true' if variant and _missing(format, False) is None else ''}"
                raise UserError(f"{typed}: {missing}.")
            made.append(ExportTarget(format, variant, missing))
    return made


def _missing(format: str, int8: bool) -> str | None:
    absent = [package for package in _PACKAGES.get((format, int8), ()) if not is_installed(package)]
    return f"needs {', '.join(absent)}: {install_command(absent[0])}" if absent else None
