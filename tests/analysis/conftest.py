"""Fixtures that write run directories with figures that a test chooses."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.records import append_epochs, new_record, update, write_record

from laptime.record import files as records
from laptime.record.epochs import EPOCH_COLUMNS

CONFIG: dict[str, Any] = {
    "seed": 1,
    "device": "cpu",
    "dataset._target_": "laptime.data.mnist.MNIST",
    "dataset.pipeline": "memory",
    "model._target_": "laptime.models.mlp.MLP",
    "optimizer.lr": 0.001,
    "training.batch_size": 64,
    "training.batch_scope": "per_rank",
    "training.precision": "32-true",
    "strategy.world_size": 1,
    "strategy.threads_per_rank": 1,
}
DDP_KEYS = {"strategy.backend": "auto", "strategy.comm_hook": "none", "strategy.wrap_single_rank": False}
# Another program's settings with names of Laptime's keys.
OTHER_PROGRAMS_CONFIG: dict[str, Any] = {
    "training": "fast", "measure": 3, "optimized_metric": {"a": 1}, "experiment_name": ["x"], "run_label": 7, "lr": 0.1,
}  # fmt: skip


def write_run(
    path: Path,
    epoch_times_s: list[float],
    world_size: int = 1,
    seed: int = 1,
    changed: dict[str, Any] | None = None,
    sections: dict[str, dict[str, Any]] | None = None,
    rank_times_s: list[list[float]] | None = None,
    num_samples: int = 1000,
    wrapped: bool = False,
    **top: Any,
) -> Path:
    """Write a completed run whose first epoch is a warm-up.

    Args:
        path: its directory.
        epoch_times_s: of rank 0, the warm-up first.
        rank_times_s: of all ranks, where they differ.
        num_samples: of each rank in an epoch.
        changed: keys of the hashed configuration.
        sections: keys of the record's sections.
        wrapped: whether a single rank has DDP around it.
        top: other keys of the record.
    """
    path.mkdir(parents=True)
    config = CONFIG | (DDP_KEYS if world_size > 1 or wrapped else {})
    if wrapped:
        config["strategy.wrap_single_rank"] = True
    if world_size > 1:
        config.pop("strategy.wrap_single_rank")  # as laptime.config.identity.hashed_config has it
    config |= {"seed": seed, "strategy.world_size": world_size} | (changed or {})
    without_seed = {key: value for key, value in config.items() if key != "seed"}
    record = new_record()
    record |= {"status": "completed", "seed": seed, "hashed_config": config, "ended_at": records.now()}
    record |= {"config_hash": repr(sorted(config.items())), "group_hash": repr(sorted(without_seed.items()))}
    record |= {"command": ["python", "train.py", "-m", f"strategy.world_size={world_size}"]}
    record["config"] = {"measure": {"target_accuracy": None}}
    batch = config["training.batch_size"]
    is_global = config["training.batch_scope"] == "global"
    values: dict[str, dict[str, Any]] = {
        "device": {
            "requested": "auto", "used": config["device"], "name": "a CPU", "precision": config["training.precision"],
        },
        "dataset": {"name": "mnist", "checksum": "abc", "num_test": 10_000},
        "model": {"name": config["model._target_"].rpartition(".")[2].lower()},
        "strategy": {
            "world_size": world_size, "threads_per_rank": config["strategy.threads_per_rank"], "oversubscribed": False,
            "backend": "gloo" if world_size > 1 or wrapped else None,
        },
        "batch": {
            "scope": config["training.batch_scope"],
            "per_rank_batch_size": batch // world_size if is_global else batch,
            "global_batch_size": batch if is_global else batch * world_size,
        },
        "timing": {"total_train_s": sum(epoch_times_s), "startup_s": 2.0, "steps_per_s": 100.0},
        "result": {"train_loss": 0.1, "test_accuracy": 0.97, "val_accuracy": 0.97},
        "resources": {"peak_rss_bytes": 10**9, "cpu_percent": 100.0},
        "git": {"commit": "0123456789abcdef"},
        "quality": {"grade": "A", "reasons": []},
    }  # fmt: skip
    for section, keys in values.items():
        update(record, section, **keys)
    record["environment"] = {
        "packages": {"torch": "2.14.1"}, "cpu": "a CPU", "num_usable_cores": 8, "hostname_hash": "h",
        "code_hash": "c0de",
    }  # fmt: skip
    for section, keys in (sections or {}).items():
        record[section] = copy.deepcopy(record[section] or {}) | keys
    record |= top
    write_record(path, record)
    times = rank_times_s or [epoch_times_s] * world_size
    for epoch in range(len(epoch_times_s)):
        rows = []
        for rank in range(world_size):
            row = dict.fromkeys(EPOCH_COLUMNS)
            row |= {"attempt": 0, "epoch": epoch, "rank": rank, "is_warmup": epoch == 0, "num_samples": num_samples}
            row |= {"epoch_time_s": times[rank][epoch], "train_loss": 1 / (epoch + 1), "train_accuracy": 0.5}
            row |= {"val_loss": 1 / (epoch + 1), "val_accuracy": 0.9 + 0.02 * epoch}
            rows.append(row)
        append_epochs(path, rows)
    return path


def write_scaled(folder: Path) -> Path:
    """Write a sweep of 1, 2 and 4 ranks, three repeats each, of 1, 1.8 and 3 times the throughput."""
    for number, (world_size, epoch_s) in enumerate(((1, 1.0), (2, 2 / 1.8), (4, 4 / 3))):
        for seed, factor in enumerate((0.99, 1.0, 1.01), start=1):
            write_run(folder / str(3 * number + seed), [9.0, *[epoch_s * factor] * 3], world_size, seed)
    return folder


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal is always 80 columns wide."""
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture(scope="session")
def write() -> Callable[..., Path]:
    return write_run


@pytest.fixture(scope="session")
def write_timed(write) -> Callable[..., Path]:
    """Write a run that LapTimer timed: write_timed(path, times, hashed settings)."""

    def write_one(path: Path, times_s: list[float], settings: dict[str, Any] | None = None, **other: Any) -> Path:
        world_size = other.get("world_size", 1)
        hashed = {"device": "cpu", "strategy.world_size": world_size, "strategy.threads_per_rank": 1}
        hashed |= ({"strategy.backend": "gloo"} if world_size > 1 else {}) | (settings or {})
        seed = other.setdefault("seed", None)
        sections = {
            "lap": {"timer": "LapTimer"},
            "model": {"name": "mnistlitmodule"},
            "dataset": {"name": "mnistdatamodule"},
        }
        top = {
            "hashed_config": hashed | {"seed": seed},
            "group_hash": json.dumps(hashed),
            "config": OTHER_PROGRAMS_CONFIG,
        }
        return write(path, times_s, **(top | other | {"sections": sections | other.get("sections", {})}))

    return write_one


@pytest.fixture
def scaled(work_folder: Path) -> Path:
    return write_scaled(Path("sweep"))


@pytest.fixture(scope="session")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The summary/ of a sweep like `scaled`, with rendered plots. Tests only read it."""
    from laptime.analysis.__main__ import main

    sweep = write_scaled(tmp_path_factory.mktemp("reported") / "sweep")
    assert main([str(sweep)]) == 0
    return sweep / "summary"


@pytest.fixture
def unrendered(summary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the rendering of plots, which takes most of a report's time, with a fixed image."""
    image = (summary / "plots" / "efficiency.png").read_bytes()
    monkeypatch.setattr("laptime.analysis.plots._save", lambda figure: image)
