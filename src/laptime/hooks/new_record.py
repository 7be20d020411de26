"""Makes the record of a training that Laptime only times, before the first lap."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from laptime.hooks.identity import HydraJob, deep_merge, mask_secrets
from laptime.hooks.settings import Settings, Timer, Training
from laptime.machine.counters import on_battery, snapshot
from laptime.machine.device import Device, cpu_name, mps_fallback, usable_cores
from laptime.machine.environment import environment, git_state, python_settings
from laptime.machine.torch_build import driver_version, torch_build
from laptime.ranks.rank import Rank
from laptime.record import schema
from laptime.record.directory import RunDir, claim
from laptime.record.files import flat
from laptime.record.hashes import config_hashes
from laptime.record.masking import mask_command
from laptime.record.run_record import RunRecord

CONTENTS = (
    "from requesting the first batch to the device-synchronized end of the last optimizer step; includes callbacks and "
    "logging between the batches, excludes validation, sanity checks, checkpoints and code in apart()"
)


def reserve(settings: Settings, job: HydraJob | None) -> Path:
    """Make and reserve the directory of the run.

    Raises:
        UserError: the directory can't be written.
    """
    if settings.dir is not None:
        directory = settings.dir
    elif job is not None:
        directory = str(job.output_dir)
    else:
        directory = f"laptime_runs/{time.strftime('%Y-%m-%d/%H-%M-%S')}"
    folder = RunDir(directory, may_move=True, key="dir").path
    claim(folder)  # marks the run as interrupted if this process disappears
    return folder


def new_record(
    timer: Timer, settings: Settings, training: Training, device: Device, rank: Rank, run_dir: Path | None
) -> RunRecord:
    """Return the record at the start of a run.

    Args:
        run_dir: the directory of the run; None: no directory can be written.
    """
    config = mask_secrets(training.config)
    record = RunRecord(
        run_dir=None if run_dir is None else str(run_dir),
        config=config,
        seed=training.seed,
        command=mask_command(sys.argv),
        lap=schema.Lap(
            unit="epoch" if settings.every is None else "batches",
            num_batches=settings.every,
            timer=timer,
            contents=CONTENTS,
        ),
    )
    record.result.score = None if settings.logged_score is None else settings.logged_score.score
    record.hashed_config = _hashed(config, training, device, rank)
    record.config_hash, record.group_hash = config_hashes(record.hashed_config)
    record.device = schema.Device(
        requested=device.requested,
        used=device.used,
        name=device.name,
        num_devices=device.num_devices,
        memory_bytes=device.memory_bytes,
        precision=training.precision,
        matmul_precision=torch.get_float32_matmul_precision(),
        cudnn_benchmark=torch.backends.cudnn.benchmark,
        mps_fallback=mps_fallback(),
    )
    ranks_here = -(-rank.world_size // rank.num_nodes)
    record.strategy = schema.Strategy(
        name=training.strategy,
        backend=training.backend,
        world_size=rank.world_size,
        threads_per_rank=rank.threads,
        oversubscribed=device.used == "cpu" and ranks_here * rank.threads > usable_cores(),
        num_nodes=rank.num_nodes,
    )
    record.model = schema.Model(name=training.model, num_parameters=training.num_parameters)
    record.dataset = schema.Dataset(name=training.dataset, num_train=training.num_train, num_test=0)
    record.batch = schema.Batch(scope="per_rank", per_rank_batch_size=None, global_batch_size=None)
    record.environment = environment(cpu_name(), usable_cores(), {"own": [{"_target_": c} for c in training.classes]})
    record.environment.settings = (record.environment.settings or {}) | python_settings()
    record.environment.torch = {**torch_build(), "num_threads": torch.get_num_threads()}
    record.environment.driver = driver_version(device)
    script = getattr(sys.modules["__main__"], "__file__", None)
    record.git = git_state(Path.cwd() if script is None else Path(script).absolute().parent)
    record.noise.load_before, record.noise.on_battery = snapshot().load, on_battery()
    record.start_attempt(0)
    record.started_at = record.attempts[-1].started_at
    return record


def _hashed(config: Mapping[str, Any], training: Training, device: Device, rank: Rank) -> dict[str, Any]:
    """Return all settings that can change the result or its timing, by full key.

    For one rank, the settings of several ranks are left out, so that one rank is the baseline of several.
    """
    strategy: dict[str, Any] = {"world_size": rank.world_size, "threads_per_rank": rank.threads}
    if training.backend is not None:
        settings = "".join(f" {name}={value}" for name, value in sorted(training.strategy_settings.items()))
        strategy["backend"] = f"{training.strategy} {training.backend}{settings}"
    detected: dict[str, Any] = {"device": device.used, "strategy": strategy, "precision": training.precision}
    if training.is_compiled:
        detected["compile"] = True
    if (precision := torch.get_float32_matmul_precision()) != "highest":
        detected["matmul_precision"] = precision
    # The user's keys with these names are kept below "config".
    user_config = {key: value for key, value in config.items() if key not in detected}
    clashing = {key: value for key, value in config.items() if key in detected}
    hashed = dict(flat(deep_merge(user_config | ({"config": clashing} if clashing else {}), detected)))
    hashed.setdefault("model._target_", training.model)
    hashed.setdefault("dataset._target_", training.dataset)
    return hashed if training.seed is None else hashed | {"seed": training.seed}
