"""The files that an export makes, and the packages that they need. Imports none of these packages."""

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
    """A file to export.

    Attributes:
        format: onnx, torch_export or torchscript.
        int8: whether the linear layers compute in int8.
        missing: a sentence with the missing packages; None: none is missing.
    """

    format: str
    int8: bool
    missing: str | None = None

    @property
    def name(self) -> str:
        """The name in tables."""
        return f"{self.format} int8" if self.int8 else self.format


def export_targets(formats: Sequence[str], int8: bool) -> list[ExportTarget]:
    """Return the files to export, each followed by its int8 variant.

    Args:
        formats: the typed formats. `all` includes the formats whose packages are missing.
        int8: whether to add int8 variants.

    Raises:
        UserError: a named format needs a package that is missing.
    """
    named = [name for name in formats if name != "all"]
    targets = []
    for format in FORMATS if "all" in formats else dict.fromkeys(named):
        for variant in (False, True) if int8 else (False,):
            missing = _missing(format, variant)
            if missing is not None and format in named:
                override = f"format={format}{' int8=true' if variant and _missing(format, False) is None else ''}"
                raise UserError(f"{override}: {missing}.")
            targets.append(ExportTarget(format, variant, missing))
    return targets


def _missing(format: str, int8: bool) -> str | None:
    absent = [package for package in _PACKAGES.get((format, int8), ()) if not is_installed(package)]
    return f"needs {', '.join(absent)}: {install_command(absent[0])}" if absent else None
