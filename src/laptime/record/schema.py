"""The schema of run.json, section by section: the order of keys, their types, and which may be null.

Figures that were not measured are null. Units are in the names. Fractions are from 0 to 1, not percentages. A record
with other types is damaged (`RunRecord.read` names the key). Keys that an older Laptime did not write are null.
"""

from typing import Annotated, Any, Literal, TypeVar

from msgspec import UNSET, Meta, Struct, UnsetType

from laptime.record.score import Score

SCHEMA_VERSION = 1

Status = Literal["running", "completed", "failed", "interrupted"]
# Sums and ratios of larger figures could be infinite.
Figure = Annotated[float, Meta(gt=-1e300, lt=1e300)]
Count = Annotated[int, Meta(ge=1)]
Size = Annotated[int, Meta(ge=0, le=2**62)]

# The phases of an optimizer step, in order. `communication` is the time that the backward pass or a sharded optimizer's
# step waits for other ranks; those phases exclude it. `rest` is the time outside of all phases, e.g. adding up losses.
PHASES = ("data", "host_to_device", "forward", "backward", "communication", "optimizer", "rest")

Section = TypeVar("Section")


def filled(section: Section | None) -> Section:
    """Return a section that the setup of a run fills in.

    Raises:
        ValueError: the section is None, because the run ended during its setup.
    """
    if section is None:
        raise ValueError("the run ended during its setup")
    return section


class RunError(Struct, kw_only=True):
    """Why a run, an attempt or a rank failed, as plain values for run.json and for other processes.

    Attributes:
        type: the class of the exception, RankDied, RankStuck or LauncherDied; empty in older records.
        message: the error message.
        epoch, step: position in the training, both from 0; None: not known.
        signum: number of the signal that ended it.
        traceback: the traceback of an unexpected exception.
        rank: the rank that failed.
    """

    type: str = ""
    message: str
    epoch: int | UnsetType | None = UNSET
    step: int | UnsetType | None = UNSET
    signum: int | UnsetType = UNSET
    traceback: str | UnsetType = UNSET
    rank: int | UnsetType = UNSET

    @property
    def first_line(self) -> str:
        """The first line of the message."""
        return self.message.partition("\n")[0]


class Device(Struct, kw_only=True):
    """The requested device, and the one that trained."""

    requested: str
    used: str
    name: str
    num_devices: int | None = None
    memory_bytes: Size | None = None
    precision: str
    matmul_precision: str | None = None
    compile: bool | None = None
    cudnn_benchmark: bool | None = None
    mps_fallback: bool | None = None


class Dataset(Struct, kw_only=True):
    """The data set, and how many samples of it were used. `num_test` is 0 if the run was not tested."""

    name: str
    synthetic: bool | None = None
    shape: list[int] | None = None
    num_classes: int | None = None
    vocab_size: int | None = None
    num_train: int | None = None
    num_val: int | None = None
    num_test: int
    limit: int | None = None
    pipeline: str | None = None
    checksum: str | None = None


class Model(Struct, kw_only=True):
    """The network."""

    name: str
    num_parameters: int | None = None
    flops_per_sample: int | None = None
    flops_per_batch: int | None = None


class Strategy(Struct, kw_only=True):
    """The ranks. `rank_pids` is ordered by rank."""

    name: str | None = None
    backend: str | None = None
    world_size: Count
    threads_per_rank: Count
    oversubscribed: bool
    num_nodes: int | None = None
    rank_pids: list[int] | None = None
    shards_optimizer: bool | None = None


class Batch(Struct, kw_only=True):
    """Number of samples per optimizer step."""

    scope: str
    per_rank_batch_size: int | None
    global_batch_size: int | None


class Lap(Struct, kw_only=True):
    """What is timed as one lap.

    Attributes:
        unit: `epoch`, or `batches` if a lap is a number of batches.
        num_batches: number of batches per lap on each rank; None: a lap is an epoch.
        timer: the code that timed the laps: training (Laptime trained), LapTimer (the Lightning callback), laps (a
            plain loop) or transformers (the callback for Hugging Face's Trainer).
        contents: a description of what a lap's time includes and excludes.
    """

    unit: Literal["epoch", "batches"] = "epoch"
    num_batches: int | None = None
    timer: str = "training"
    contents: str | None = None


class Timing(Struct, kw_only=True):
    """Medians of the counted laps, and times of the whole run.

    A lap is an epoch, unless `lap` says otherwise. `warmup_epochs` and `epoch_time_s` are about laps.
    `straggler_delay` is a fraction: how much longer the slowest rank took than the median one.
    """

    warmup_epochs: int | None = None
    total_train_s: Figure | None = None
    epoch_time_s: Figure | None = None
    samples_per_s: Figure | None = None
    tokens_per_s: Figure | None = None
    batches_per_s: Figure | None = None
    steps_per_s: Figure | None = None
    startup_s: Figure | None = None
    compile_s: Figure | None = None
    straggler_delay: Figure | None = None


class Result(Struct, kw_only=True):
    """Losses and scores. Accuracies are null unless they are the score. The times are in seconds of training.

    Attributes:
        score: what the run is scored by; None: no score was measured.
    """

    train_loss: Figure | None = None
    train_accuracy: Figure | None = None
    val_loss: Figure | None = None
    val_accuracy: Figure | None = None
    test_loss: Figure | None = None
    test_accuracy: Figure | None = None
    time_to_accuracy: Figure | None = None
    score: Score | None = None
    train_score: Figure | None = None
    val_score: Figure | None = None
    test_score: Figure | None = None
    time_to_score: Figure | None = None
    stop_reason: str | None = None


class Resources(Struct, kw_only=True):
    """Memory, CPU and energy of all ranks together."""

    peak_rss_bytes: Size | None = None
    peak_device_memory_bytes: Size | None = None
    device_memory_bytes: Size | None = None
    driver_memory_bytes: Size | None = None
    cpu_percent: Figure | None = None
    cpu_percent_by_core: list[float] | None = None
    sampler_num_samples: int | None = None
    sampler_cpu_fraction: Figure | None = None
    energy_joules: Figure | None = None
    energy_joules_per_1000_samples: Figure | None = None
    energy_missing: str | None = None


class Communication(Struct, kw_only=True):
    """The time that gradient synchronization takes, in seconds per step. `share` is exposed_s / step_s."""

    num_all_reduces_per_step: Size | None = None
    bytes_per_step: Size | None = None
    step_s: Figure | None = None
    compute_s: Figure | None = None
    comm_s: Figure | None = None
    overlap_s: Figure | None = None
    exposed_s: Figure | None = None
    share: Figure | None = None
    share_min: Figure | None = None
    share_max: Figure | None = None
    cost_s: Figure | None = None
    isolated_all_reduce_s: Figure | None = None
    num_steps: int | None = None


class Contention(Struct, kw_only=True):
    """Seconds of steps without gradient synchronization.

    `straggler_delay` is a fraction: how much longer the slowest rank takes for them than the median one.
    """

    no_sync_step_s: Figure | None = None
    straggler_delay: Figure | None = None


class Breakdown(Struct, kw_only=True):
    """Seconds of a step by phase (`PHASES`)."""

    data_s: Figure | None = None
    host_to_device_s: Figure | None = None
    forward_s: Figure | None = None
    backward_s: Figure | None = None
    communication_s: Figure | None = None
    optimizer_s: Figure | None = None
    rest_s: Figure | None = None
    step_s: Figure | None = None
    step_p50_s: Figure | None = None
    step_p95_s: Figure | None = None
    step_p99_s: Figure | None = None
    num_steps: int | None = None
    epoch_start_s: Figure | None = None
    instrument_s: Figure | None = None

    def of_phase(self, phase: str) -> float | None:
        """Seconds of a phase; None: not measured."""
        value: float | None = getattr(self, f"{phase}_s")
        return value


class Peak(Struct, kw_only=True):
    """The peak performance of the devices of all ranks, and what the run achieved.

    Attributes:
        mfu: achieved FLOP/s over `matmul_flop_per_s`, the fastest matrix product measured on this device and precision.
        compute_mfu: the MFU of the forward and backward pass alone.
    """

    matmul_flop_per_s: Figure | None = None
    copy_bytes_per_s: Figure | None = None
    achieved_flop_per_s: Figure | None = None
    mfu: Figure | None = None
    compute_mfu: Figure | None = None
    optimizer_bytes_per_s: Figure | None = None
    verdict: str | None = None


class BareLoop(Struct, kw_only=True):
    """The same epochs in a loop without Lightning. `overhead` is a fraction: how much longer the run took."""

    epoch_time_s: Figure | None = None
    overhead: Figure | None = None
    overhead_min: Figure | None = None
    overhead_max: Figure | None = None
    overhead_s_per_step: Figure | None = None
    num_epochs: int | None = None
    train_loss: Figure | None = None


class EpochNoise(Struct, kw_only=True):
    """Other activity of the machine during an epoch. See `laptime.machine.counters.Noise`."""

    attempt: int
    epoch: int
    is_warmup: bool
    wall_s: Figure
    other_cores: Figure | None = None
    steal_fraction: Figure | None = None
    throttled_fraction: Figure | None = None
    num_swapped_pages: int | None = None
    involuntary_switches_per_s: Figure | None = None
    frequency_hz: Figure | None = None
    temperature_celsius: Figure | None = None


class Noise(Struct, kw_only=True):
    """The machine's load average before and after the epochs, and its counters in each epoch."""

    load_before: Figure | None = None
    load_after: Figure | None = None
    on_battery: bool | None = None
    epochs: list[EpochNoise] | None = None


class Quality(Struct, kw_only=True):
    """How far the figures can be trusted: grade A, B or C, and the reasons why it is not better."""

    grade: str | None = None
    reasons: list[str] | None = None


class Attempt(Struct, kw_only=True):
    """One start of the ranks. A restart is another attempt."""

    attempt: int
    started_at: str | None = None
    ended_at: str | None = None
    status: Status
    error: RunError | None = None
    startup_s: Figure | None = None
    total_train_s: Figure | None = None


class Git(Struct, kw_only=True):
    """The git commit of the code. `diff_hash` is the hash of uncommitted changes."""

    commit: str | None = None
    dirty: bool | None = None
    diff_hash: str | None = None


class Environment(Struct, kw_only=True):
    """The machine, system and packages. `settings` are variables and options that change the timing."""

    code_hash: str
    python: str | None = None
    packages: dict[str, str | None]
    cpu: str
    num_physical_cores: int | None = None
    num_logical_cores: int | None = None
    num_usable_cores: Count
    num_sockets: int | None = None
    num_performance_cores: int | None = None
    num_efficiency_cores: int | None = None
    caches: list[dict[str, Any]] | None = None
    governors: list[str] | None = None
    frequency_min_hz: Figure | None = None
    frequency_max_hz: Figure | None = None
    container: dict[str, Figure | None] | None = None
    memory_bytes: Size | None = None
    os: str | None = None
    os_version: str | None = None
    kernel: str | None = None
    platform: str | None = None
    machine: str | None = None
    hostname_hash: str
    hostname: str | None = None
    variables: dict[str, str] | None = None
    settings: dict[str, str] | None = None
    torch: dict[str, Any] | None = None
    driver: str | None = None
