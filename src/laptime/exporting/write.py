"""Writes exported files to the run directory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from laptime.record.directory import write_folder
from laptime.record.files import finite

FOLDER = "export"


def write(report: Mapping[str, Any], files: Mapping[str, bytes], run_dir: Path) -> Path:
    """Write the files and then export.json, which describes them. Return the folder."""
    text = json.dumps(finite(report), indent=2, allow_nan=False)
    return write_folder(run_dir / FOLDER, {**files, "export.json": text.encode() + b"\n"})
