"""What a run directory holds: run.json and epochs.csv, how to write them and how to read them back.

The only thing that training and analysis share; it knows neither torch nor the configuration.
"""

import csv
import io
import json
import math
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from laptime.record import renamed
from laptime.record.masking import mask

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1

RUN_FILE = "run.json"
EPOCHS_FILE = "epochs.csv"
LOG_FILE = "train.log"
CHECKPOINT_DIR = "checkpoints"
LAST_CHECKPOINT = "last.ckpt"
PREVIOUS_CHECKPOINT = "previous.ckpt"
BEST_CHECKPOINT = "best.ckpt"
TENSORBOARD_DIR = "tensorboard"
# What a run had left behind when it was started again from the beginning.
EARLIER_DIR = "earlier"
# What Hydra writes into a sweep's directory when it starts.
SWEEP_FILE = "multirun.yaml"
# What tells each of its runs from the others, by number, those that have not started included.
PLAN_FILE = "plan.json"

STATUSES = ("running", "completed", "failed", "interrupted")

# The parts of an optimizer step, in their order. `communication` is waiting for gradients of other ranks, taken out of
# the backward pass or a sharded optimizer's step, `rest` what is in none of the others: losses and hits are noted, say.
PARTS = ("data", "host_to_device", "forward", "backward", "communication", "optimizer", "rest")

# Every key of run.json. A section that is a tuple of names is an object with those keys; what was not measured is null.
_SECTIONS: dict[str, tuple[str, ...] | None] = {
    "schema_version": None,
    "status": None,
    "error": None,
    "started_at": None,
    "ended_at": None,
    "config": None,
    "hashed_config": None,
    "config_hash": None,
    "group_hash": None,
    "seed": None,
    "device": (
        "requested", "used", "name", "num_devices", "memory_bytes", "precision", "matmul_precision", "compile",
        "cudnn_benchmark", "mps_fallback",
    ),
    "dataset": (
        "name", "synthetic", "shape", "num_classes", "num_train", "num_val", "num_test", "limit", "pipeline",
        "checksum",
    ),
    "model": ("name", "num_parameters", "flops_per_sample"),
    "strategy": (
        "name", "backend", "world_size", "threads_per_rank", "oversubscribed", "num_nodes", "rank_pids",
        "shards_optimizer",
    ),
    "batch": ("scope", "per_rank_batch_size", "global_batch_size"),
    "timing": (
        "warmup_epochs", "total_train_s", "epoch_time_s", "samples_per_s", "steps_per_s", "startup_s", "compile_s",
        "straggling",
    ),
    "result": (
        "train_loss", "train_accuracy", "val_loss", "val_accuracy", "test_loss", "test_accuracy", "time_to_accuracy",
        "stop_reason",
    ),
    "resources": (
        "peak_rss_bytes", "peak_device_memory_bytes", "device_memory_bytes", "driver_memory_bytes", "cpu_percent",
        "cpu_percent_by_core", "sampler_num_samples", "sampler_cpu_share", "energy_joules",
        "energy_joules_per_1000_samples", "energy_missing",
    ),
    "communication": (
        "num_all_reduces_per_step", "bytes_per_step", "step_s", "compute_s", "comm_s", "overlap_s", "exposed_s",
        "share", "share_min", "share_max", "cost_s", "bare_all_reduce_s", "num_steps",
    ),
    "contention": ("no_sync_step_s", "straggling"),
    "breakdown": (
        *(f"{part}_s" for part in PARTS), "step_s", "step_p50_s", "step_p95_s", "step_p99_s", "num_steps",
        "epoch_start_s", "instrument_s",
    ),
    "peak": (
        "matmul_flop_per_s", "copy_bytes_per_s", "achieved_flop_per_s", "achieved_fraction", "compute_fraction",
        "optimizer_bytes_per_s", "verdict",
    ),
    "bare_loop": (
        "epoch_time_s", "overhead", "overhead_min", "overhead_max", "overhead_s_per_step", "num_epochs", "train_loss",
    ),
    "noise": ("load_before", "load_after", "on_battery", "epochs"),
    "quality": ("grade", "reasons"),
    "attempts": None,
    "environment": None,
    "git": ("commit", "dirty", "diff_hash"),
    "command": None,
}  # fmt: skip

# Keys of `strategy` that DistributedDataParallel alone knows: without it, such a setting changes nothing.
OF_DDP = (
    "backend", "bucket_cap_mb", "gradient_as_bucket_view", "static_graph", "comm_hook", "shard_optimizer",
    "wrap_single_rank",
)  # fmt: skip

# What TensorBoard's HPARAMS tab shows beside a run's settings: keys of `result` and `timing`.
HPARAM_METRICS = ("hparam/epoch_time_s", "hparam/samples_per_s", "hparam/val_accuracy", "hparam/test_accuracy")

# One row per epoch and rank. epoch counts from 0; num_samples and samples_per_s are this rank's own.
EPOCH_COLUMNS = (
    "attempt", "epoch", "rank", "is_warmup", "epoch_time_s", "num_samples", "samples_per_s", "data_wait_s",
    "train_loss", "train_accuracy", "val_loss", "val_accuracy", "lr", "cpu_percent", "rss_bytes",
    "device_memory_bytes",
)  # fmt: skip


def now() -> str:
    """The time in UTC, ISO 8601, to the millisecond."""
    return timestamp(time.time())


def timestamp(seconds: float) -> str:
    """A `time.time()` in UTC, ISO 8601, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


def parse_timestamp(text: str) -> float:
    """The `time.time()` that `timestamp` wrote."""
    return datetime.fromisoformat(text).timestamp()


def new_record() -> dict[str, Any]:
    """A run record in which nothing is known yet but that it runs: every key is there, every value null."""
    record: dict[str, Any] = {name: None if keys is None else dict.fromkeys(keys) for name, keys in _SECTIONS.items()}
    return record | {"schema_version": SCHEMA_VERSION, "status": "running", "started_at": now(), "attempts": []}


def start_attempt(record: dict[str, Any], attempt: int) -> None:
    """Note that the ranks start, for the first time (0) or again; an attempt that never said how it ended died."""
    for earlier in record["attempts"]:
        if earlier["status"] == "running":
            died = {"type": "RankDied", "message": "the ranks ended without a word"}
            earlier.update(status="failed", error=died)
    record.update(status="running", error=None, ended_at=None)
    new = dict.fromkeys(("attempt", "started_at", "ended_at", "status", "error", "startup_s", "total_train_s"))
    record["attempts"].append(new | {"attempt": attempt, "started_at": now(), "status": "running"})


def end_attempt(record: dict[str, Any], status: str, error: Mapping[str, Any] | None) -> None:
    """Note how the run ended, and with it its last attempt."""
    end = {"status": status, "error": error, "ended_at": now()}
    record.update(end)
    record["attempts"][-1].update(end)


def update(record: dict[str, Any], section: str, **values: Any) -> None:
    """Set keys of one section.

    Raises:
        KeyError: the schema has no such section or key: a bug, never a user's mistake.
    """
    for key, value in values.items():
        if key not in record[section]:
            raise KeyError(f"run.json has no {section}.{key}")
        record[section][key] = value


def write_record(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Write run.json as a whole or not at all. Infinite values and NaN, which JSON has no words for, become null."""
    text = json.dumps(finite(record), indent=2, allow_nan=False)
    write_atomically(run_dir / RUN_FILE, text.encode() + b"\n")


def end_without_launcher(run_dir: Path, message: str) -> None:
    """Note that a run has failed whose launching process is gone; one that had ended before stays as it is."""
    record = read_record(run_dir)
    if record["status"] == "running":
        end_attempt(record, "failed", {"type": "LauncherDied", "message": message})
        write_record(run_dir, record)


def read_record(run_dir: Path) -> dict[str, Any]:
    """Read run.json of a run directory.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON, no object, or of another schema version.
    """
    try:
        record = json.loads((run_dir / RUN_FILE).read_bytes())
    except UnicodeDecodeError as error:
        raise ValueError(f"{run_dir / RUN_FILE}: not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{run_dir / RUN_FILE}: not JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{run_dir / RUN_FILE}: not an object")
    if record.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"{run_dir / RUN_FILE}: schema version {record.get('schema_version')}, not {SCHEMA_VERSION}")
    renamed.update(record)
    return record


def append_epochs(run_dir: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Append rows to epochs.csv and see them onto the disk; the first call writes the header.

    Args:
        rows: each with the keys EPOCH_COLUMNS; None is written as an empty field.
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, EPOCH_COLUMNS, lineterminator="\n")
    with (run_dir / EPOCHS_FILE).open("ab+", buffering=0) as file:
        size = file.tell()
        if size == 0:
            writer.writeheader()
        else:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a line torn by the death of the process that wrote it
                text.write("\n")
        writer.writerows(rows)
        content = text.getvalue().encode()
        try:
            written = file.write(content)
            if written != len(content):  # as far as the disk had room: what is left says why
                file.write(content[written:])
            os.fsync(file.fileno())
        except OSError as error:
            file.truncate(size)  # all rows or none
            error.filename = str(run_dir / EPOCHS_FILE)
            raise


def read_epochs(run_dir: Path) -> "pd.DataFrame":
    """Read epochs.csv: one row per attempt, epoch and rank, columns EPOCH_COLUMNS; empty where there is no file."""
    import pandas as pd  # takes its time to load, and asking for help needs none of it

    path = run_dir / EPOCHS_FILE
    if not path.exists() or path.stat().st_size == 0:  # just made, or by a process that was killed at that moment
        return pd.DataFrame(columns=list(EPOCH_COLUMNS))
    return pd.read_csv(path, float_precision="round_trip")  # the same bits as written


def epoch_rows(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of epochs.csv as they were written: an empty field is None."""
    epochs = read_epochs(run_dir).astype(object)
    rows = epochs.where(epochs.notna(), None).to_dict("records")
    return [{str(column): value for column, value in row.items()} for row in rows]


def each_epoch_once(epochs: "pd.DataFrame", by: Sequence[str] = ("epoch",)) -> "pd.DataFrame":
    """The rows of epochs.csv that stand: of an epoch that several attempts have completed, the last one's.

    Args:
        by: columns that tell epochs apart, where there are those of several runs.
    """
    return epochs[epochs["attempt"] == epochs.groupby(list(by))["attempt"].transform("max")]


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a nested configuration by full key: `training.batch_size`."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def is_maximised(metric: str) -> bool:
    """Whether more is better of a figure of `result` or `timing`: of accuracies and of what is done in a second."""
    return (metric.endswith("_accuracy") and not metric.startswith("time_to")) or metric.endswith("_per_s")


def flat_config(config: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """A run's settings by full key, as TensorBoard's HPARAMS tab takes them; without places, secrets and what only
    shows."""
    left_out = ("logger", "callbacks", "run_dir", "run_label")
    return {
        name: value if isinstance(value, bool | int | float) else str(value)
        for name, value in flat(mask(config))
        if name.partition(".")[0] not in left_out
    }


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file in one step: whoever reads it sees the old content or the new, whole, whatever happens between."""
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
            error.filename = str(path)  # the file that matters
        raise


def finite(value: Any) -> Any:
    """A copy in which infinite values and NaN are None, for which JSON has a word."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return deepcopy(value)
