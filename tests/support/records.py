"""Rows of epochs.csv for tests."""

from typing import Any

EPOCH_ROW: dict[str, Any] = {
    "attempt": 0,
    "epoch": 1,
    "rank": 0,
    "is_warmup": False,
    "epoch_time_s": 1.25,
    "num_samples": 100,
    "samples_per_s": 80.0,
    "data_wait_s": 0.5,
    "train_loss": 0.1,
    "train_accuracy": 0.9,
    "val_loss": 0.2,
    "val_accuracy": 0.8,
    "lr": 0.001,
    "cpu_percent": 99.5,
    "rss_bytes": 2**33,
    "device_memory_bytes": 2**34,
}
