"""The files of a run directory. Writes and reads run.json and epochs.csv.

Only this package is shared by training and analysis. It imports neither torch nor the configuration.
"""

import csv
import io
import json
import math
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from laptime.record import renamed
from laptime.record.epochs import EPOCH_COLUMNS, NEW_COLUMNS, EpochRow
from laptime.record.masking import mask
from laptime.record.schema import SCHEMA_VERSION
from laptime.record.score import Score

if TYPE_CHECKING:
    import pandas as pd

RUN_FILE = "run.json"
EPOCHS_FILE = "epochs.csv"
LOG_FILE = "train.log"
SAMPLE_FILE = "sample.txt"
CHECKPOINT_DIR = "checkpoints"
LAST_CHECKPOINT = "last.ckpt"
PREVIOUS_CHECKPOINT = "previous.ckpt"
BEST_CHECKPOINT = "best.ckpt"
TENSORBOARD_DIR = "tensorboard"
# Files of a run that was started again from the beginning.
EARLIER_DIR = "earlier"
# Hydra writes this file into the directory of a sweep when it starts.
SWEEP_FILE = "multirun.yaml"
# The swept values of each run of a sweep, by number, including runs that have not started.
PLAN_FILE = "plan.json"

# Maximum length of the header of epochs.csv, in bytes.
_LONGEST_HEADER = 4096

# Keys of `strategy` that have no effect without DistributedDataParallel.
DDP_KEYS = (
    "backend", "bucket_cap_mb", "gradient_as_bucket_view", "static_graph", "find_unused_parameters", "comm_hook",
    "shard_optimizer", "wrap_single_rank",
)  # fmt: skip

# Columns of epochs.csv that are equal if the score is accuracy.
SCORE_COLUMNS = {"train_score": "train_accuracy", "val_score": "val_accuracy"}


def now() -> str:
    """Return the current time in UTC as ISO 8601 text, in milliseconds."""
    return timestamp(time.time())


def timestamp(seconds: float) -> str:
    """Convert a `time.time()` to ISO 8601 text in UTC, in milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def parse_timestamp(text: str) -> float:
    """Convert the text of `timestamp` back to seconds."""
    return datetime.fromisoformat(text).timestamp()


class DamagedRecord(ValueError):
    """A run.json that can't be read.

    Args:
        path: the path of the file.
        reason: the reason why it can't be read.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.reason = reason


def read_record(run_dir: Path) -> dict[str, Any]:
    """Read run.json of a run directory.

    Raises:
        FileNotFoundError: there is no run.json.
        DamagedRecord: the file is not JSON, not an object, or has another schema version. It is a ValueError.
    """
    path = run_dir / RUN_FILE
    try:
        record = json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise DamagedRecord(path, "not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise DamagedRecord(path, f"not JSON ({error})") from error
    if not isinstance(record, dict):
        raise DamagedRecord(path, "not an object")
    if record.get("schema_version") != SCHEMA_VERSION:
        raise DamagedRecord(path, f"schema version {record.get('schema_version')}, not {SCHEMA_VERSION}")
    renamed.update(record)
    return record


def append_epochs(run_dir: Path, rows: Iterable[EpochRow]) -> None:
    """Append rows to epochs.csv and flush them to disk. The first call writes the header.

    A file of an older Laptime has fewer columns, and keeps them.

    Args:
        rows: the rows to append. None is written as an empty field.
    """
    text = io.StringIO(newline="")
    with (run_dir / EPOCHS_FILE).open("ab+", buffering=0) as file:
        size = file.tell()
        file.seek(0)
        header = file.read(_LONGEST_HEADER).partition(b"\n")[0].decode(errors="replace").strip()
        columns = header.split(",") if size else EPOCH_COLUMNS
        writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        if size == 0:
            writer.writeheader()
        else:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # the process that wrote the last line died meanwhile
                text.write("\n")
        writer.writerows(asdict(row) for row in rows)
        content = text.getvalue().encode()
        try:
            written = file.write(content)
            if written != len(content):  # the disk may be full: writing the rest raises the reason
                file.write(content[written:])
            os.fsync(file.fileno())
        except OSError as error:
            file.truncate(size)  # write all rows or none
            error.filename = str(run_dir / EPOCHS_FILE)
            raise


def read_epochs(run_dir: Path) -> "pd.DataFrame":
    """Read epochs.csv.

    Returns:
        One row per attempt, epoch and rank, with columns EPOCH_COLUMNS. Without a file there are no rows. Columns that
        a file of an older Laptime lacks are empty.
    """
    import pandas as pd  # slow to import, and --help doesn't need it

    path = run_dir / EPOCHS_FILE
    if not path.exists() or path.stat().st_size == 0:  # just created, maybe by a process that was killed then
        return pd.DataFrame(columns=list(EPOCH_COLUMNS))
    rows = pd.read_csv(path, float_precision="round_trip")  # reads the same bits as written
    return rows.reindex(columns=[*rows.columns, *(name for name in NEW_COLUMNS if name not in rows.columns)])


def epoch_rows(run_dir: Path) -> list[EpochRow]:
    """Read the rows of epochs.csv, without pandas, which is slow to import. Empty fields are None.

    Raises:
        ValueError: a field has a wrong type, or a column is missing.
    """
    path = run_dir / EPOCHS_FILE
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = [{name: text or None for name, text in row.items()} for row in csv.DictReader(file)]
    for row in rows:
        for score, accuracy in SCORE_COLUMNS.items():
            row.setdefault(score, row.get(accuracy))  # in files of older versions, accuracy is the score
    return msgspec.convert(rows, list[EpochRow], strict=False)


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a nested configuration with their full keys: `training.batch_size`."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def hparam_metrics(score: Score) -> dict[str, str]:
    """Return the metrics of TensorBoard's HPARAMS tab: a key of `result` or `timing` for each tag."""
    return {
        "hparam/epoch_time_s": "epoch_time_s",
        "hparam/samples_per_s": "samples_per_s",
        f"hparam/val_{score.tag}": "val_score",
        f"hparam/test_{score.tag}": "test_score",
    }


def is_score(metric: str) -> bool:
    """Whether a key of `result` or `timing` is a value of the run's score."""
    return metric.endswith("_score") and not metric.startswith("time_to")


def is_maximized(metric: str, score: Score) -> bool:
    """Whether a larger value of a key of `result` or `timing` is better.

    Args:
        score: the score of the runs.
    """
    if is_score(metric):
        return score.is_maximized
    return (metric.endswith("_accuracy") and not metric.startswith("time_to")) or metric.endswith("_per_s")


def flat_config(config: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Return a run's settings by full key for TensorBoard's HPARAMS tab.

    Paths, secrets, loggers and callbacks are left out.
    """
    left_out = ("logger", "callbacks")
    return {
        name: value if isinstance(value, bool | int | float) else str(value)
        for name, value in flat(mask(config))
        if name.partition(".")[0] not in left_out
    }


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file atomically: readers see either the whole old content or the whole new content."""
    temporary = None
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = str(path)  # name the file that the caller knows
        raise


def finite(value: Any) -> Any:
    """Return a copy in which infinite values and NaN, which JSON lacks, are None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return deepcopy(value)
