"""Read the values that loggers have written for a run.

MLflow, W&B and TensorBoard are imported inside the functions, because each process of pytest imports this file.
"""

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient


def mlflow_client(folder: Path) -> "MlflowClient":
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def mlflow_runs(folder: Path, experiment: str = "laptime") -> list["Run"]:
    client = mlflow_client(folder)
    entity = client.get_experiment_by_name(experiment)
    assert entity is not None
    return list(client.search_runs([entity.experiment_id], order_by=["attributes.start_time"]))


def mlflow_values(folder: Path, run: "Run") -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every metric."""
    client = mlflow_client(folder)
    return {
        tag: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, tag)]
        for tag in run.data.metrics
    }


def wandb_records(run_dir: Path) -> list[Any]:
    """The records of a run's .wandb file.

    Like LevelDB's log, the file consists of blocks of 32 KiB. Each block has pieces of records: a checksum, a length, a
    kind (whole, first, middle, last) and the content.
    """
    from wandb.proto import wandb_internal_pb2

    (path,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    content, position, records, pieces = path.read_bytes(), 7, [], b""
    while position + 7 <= len(content):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        pieces += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pieces)
            records.append(record)
            pieces = b""
    return records


def wandb_values(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    values: dict[str, list[tuple[int, float]]] = {}
    for record in wandb_records(run_dir):
        items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        for tag, value in items.items():
            if not tag.startswith("_") and tag != "epoch":
                values.setdefault(tag, []).append((int(items["epoch"]), float(value)))
    return values


def wandb_run(run_dir: Path) -> Any:
    (run,) = [record.run for record in wandb_records(run_dir) if record.WhichOneof("record_type") == "run"]
    return run


def wandb_exit_code(run_dir: Path) -> int:
    (end,) = [record.exit for record in wandb_records(run_dir) if record.WhichOneof("record_type") == "exit"]
    return int(end.exit_code)


def tensorboard_values(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    values: dict[str, list[tuple[int, float]]] = {}
    for path in run_dir.glob("tensorboard/**/events*"):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            values.setdefault(tag, []).extend((scalar.step, scalar.value) for scalar in events.Scalars(tag))
    return values


def csv_values(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    (path,) = run_dir.glob("csv/**/metrics.csv")
    table = pd.read_csv(path)
    return {
        str(tag): [(int(step), value) for step, value in zip(table["step"], table[tag], strict=True) if value == value]
        for tag in table.columns
        if tag != "step"
    }
