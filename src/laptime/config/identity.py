"""What makes two runs the same: all that can change a run's result or its timing."""

import json
import zlib
from typing import Any

from laptime.config.own_task import UNUSED_GROUPS, UNUSED_KEYS
from laptime.config.run_values import DIRECTORY_TO_COME
from laptime.config.schema import CLASSIFICATION, OWN, Config
from laptime.config.validate import resolve_warmup_epochs
from laptime.record.files import DDP_KEYS, flat
from laptime.record.laps import steps_per_lap
from laptime.record.masking import mask

# Keys that change neither the result of a run nor its timing: paths, ports, loggers, callbacks that only display.
_NOT_HASHED = (
    ("strategy", "master_addr"),
    ("strategy", "master_port"),
    ("strategy", "timeout_s"),
    ("strategy", "max_restarts"),
    ("sweep",),
    ("security",),
    ("logger",),
    ("optimized_metric",),
    ("callbacks", "progress_bar"),
    ("dataset", "root"),
    ("dataset", "verify"),
    ("measure", "breakdown"),  # measured after the timed steps
    ("measure", "peak"),
    ("measure", "sample_interval_s"),  # less than 1% of a core
    ("measure", "memory_warning"),
    ("measure", "target_accuracy"),
    ("measure", "target_score"),
    ("measure", "target_interval"),
    ("measure", "max_repeats"),
    ("strategy", "name"),
    ("training", "checkpoint"),
)


# Values that turn a key off. In hashes and checkpoints, a run with such a value equals a run without the key.
NEUTRAL_VALUES = {
    "label_smoothing": 0, "mixup_alpha": 0, "ema_decay": None, "swa_start_epoch": None,
    "max_steps": None, "lap_steps": None,
}  # fmt: skip


def hashed_config(
    config: Config,
    device_used: str,
    world_size: int,
    threads_per_rank: int,
    run_dir: str = DIRECTORY_TO_COME,
    runs_at_once: int = 1,
) -> dict[str, Any]:
    """Every setting that can change a run's result or its timing, by full key.

    Secrets are masked: no record contains them, and a new password does not make another experiment.

    Args:
        device_used: the device that trained, which may differ from the requested one.
        world_size: number of ranks, as used.
        threads_per_rank: CPU threads of each rank, as used.
        run_dir: the directory for which `config` was resolved. It is cut from paths in it, so that it makes no
            difference between two runs.
        runs_at_once: runs of the sweep that share the machine.
    """
    content = _without_run_dir(json.loads(json.dumps(mask(config.as_dict()))), run_dir)
    left_out = list(_NOT_HASHED)
    bar = (content.get("callbacks") or {}).get("progress_bar") or {}
    if not str(bar.get("_target_", "laptime.")).startswith(("laptime.", "pytorch_lightning.")):
        left_out.remove(("callbacks", "progress_bar"))  # another callback has replaced the progress bar
    if runs_at_once > 1:
        content["runs_at_once"] = runs_at_once
    if config.task.name == CLASSIFICATION:  # the only task of older versions
        left_out.append(("task",))
    if config.task.name == OWN:
        left_out += [tuple(key.split(".")) for key in (*UNUSED_GROUPS, *UNUSED_KEYS)]
    training = content["training"]
    if (lap_steps := steps_per_lap(training)) is not None:
        training["lap_steps"] = lap_steps
        left_out.append(("training", "epochs"))
    left_out += [("training", key) for key, neutral in NEUTRAL_VALUES.items() if training.get(key) == neutral]
    if not content["strategy"]["find_unused_parameters"]:  # older versions have no such key
        left_out.append(("strategy", "find_unused_parameters"))
    if content["dataset"].get("pipeline") in ("memory", "mapped"):
        left_out.append(("dataset", "num_workers"))
    if world_size > 1:
        left_out.append(("strategy", "wrap_single_rank"))
    elif not content["strategy"]["wrap_single_rank"]:
        left_out += [("strategy", key) for key in DDP_KEYS]
    for *parents, key in left_out:
        node = content
        for parent in parents:
            node = node.get(parent, {})
        node.pop(key, None)
    content["device"] = device_used
    content["strategy"] |= {"world_size": world_size, "threads_per_rank": threads_per_rank}
    content["measure"]["warmup_epochs"] = resolve_warmup_epochs(config.measure.warmup_epochs, config.training.num_laps)
    return dict(flat(_normalize_numbers(content)))


def snapshot(config: Config) -> bytes:
    """The settings of a resolved configuration that can change a run's result or its timing, independent of the machine
    and the run's directory. Compressed, because a sweep may have thousands."""
    return zlib.compress(json.dumps(_machine_independent(config), sort_keys=True).encode())


def changed_since(earlier: bytes, config: Config) -> list[str]:
    """The keys in which a configuration differs from a `snapshot`."""
    before, now = json.loads(zlib.decompress(earlier)), json.loads(json.dumps(_machine_independent(config)))
    # Compared as text, because nan is not equal to itself.
    return [key for key in dict.fromkeys([*before, *now]) if json.dumps(before.get(key)) != json.dumps(now.get(key))]


def _machine_independent(config: Config) -> dict[str, Any]:
    return hashed_config(config, "", 1, 1)


def _without_run_dir(value: Any, run_dir: str) -> Any:
    """Make paths in the run's own directory relative to it, so that they don't make two runs differ."""
    if isinstance(value, dict):
        return {key: _without_run_dir(item, run_dir) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_run_dir(item, run_dir) for item in value]
    is_within = isinstance(value, str) and (value == run_dir or value.startswith(f"{run_dir}/"))
    return value.removeprefix(run_dir) if is_within else value


def _normalize_numbers(value: Any) -> Any:
    """Turn 1.0 into 1, so that both have the same hash."""
    if isinstance(value, dict):
        return {key: _normalize_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_normalize_numbers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
