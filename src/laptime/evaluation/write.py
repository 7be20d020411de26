"""Writes an evaluation to the run directory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from laptime.evaluation.plot import confusion_png
from laptime.record.directory import write_folder
from laptime.record.files import finite

FOLDER = "evaluation"


def write(evaluation: Mapping[str, Any], run_dir: Path) -> Path:
    """Write evaluation.json, and of classifications also the confusion matrix (.csv, .png). Return the folder."""
    report = json.dumps(finite(evaluation), indent=2, allow_nan=False).encode() + b"\n"
    if "confusion_matrix" not in evaluation:  # it is not a classification
        return write_folder(run_dir / FOLDER, {"evaluation.json": report})
    matrix = np.array(evaluation["confusion_matrix"])
    title = f"{evaluation['model']} on {evaluation['dataset']['name']}: {evaluation['result']['test_accuracy']:.2%}"
    files = {
        "confusion_matrix.csv": _csv(matrix),
        "confusion_matrix.png": confusion_png(matrix, title),
        "evaluation.json": report,
    }
    return write_folder(run_dir / FOLDER, files)


def _csv(matrix: np.ndarray) -> bytes:
    """Return the matrix as CSV, with one row per true class and one column per predicted class."""
    columns = [f"predicted_{number}" for number in range(len(matrix))]
    frame = pd.DataFrame(matrix, columns=columns).rename_axis("true")
    text: str = frame.to_csv(lineterminator="\n")
    return text.encode()
