"""The configuration of a run: keys, types and ranges of the closed groups.

Hydra checks keys and types against the dataclasses when it composes. Each class's `check` checks the range of single
fields; laptime.config.validate checks several fields together. The defaults are in conf/.
"""

import math
from dataclasses import asdict, dataclass, field, fields
from operator import attrgetter
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from laptime.errors import UserError
from laptime.record.laps import num_laps, steps_per_lap
from laptime.record.logged_score import LoggedScore
from laptime.record.score import ACCURACY, BITS_PER_CHARACTER, Score
from laptime.text import counted

DEVICES = ("auto", "cpu", "mps", "cuda", "xpu", "accelerator")

# More than any count needs; torch fails on numbers beyond 64 bits.
_LARGEST = 10**9

_MOST_THREADS = 1024

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")

MATMUL_PRECISIONS = ("highest", "high", "medium")

CLASSIFICATION, LANGUAGE_MODELING, OWN = "classification", "language_modeling", "own"
TASKS = (CLASSIFICATION, LANGUAGE_MODELING, OWN)
SCORES = {CLASSIFICATION: ACCURACY, LANGUAGE_MODELING: BITS_PER_CHARACTER}

OPTIMIZED_METRICS = (
    "train_loss", "val_loss", "test_loss", "train_score", "val_score", "test_score", "time_to_score",
    "epoch_time_s", "samples_per_s", "steps_per_s", "total_train_s",
)  # fmt: skip
# Further names if accuracy is the score.
ACCURACY_METRICS = ("train_accuracy", "val_accuracy", "test_accuracy", "time_to_accuracy")


def one_of(key: str, value: str, allowed: tuple[str, ...], instead: str = "") -> None:
    if value not in allowed:
        raise UserError(f"{key}={value}: must be one of {', '.join(allowed)}.{instead and ' ' + instead}")


def at_least(key: str, value: float | None, least: int) -> None:
    if value is not None and value < least:
        raise UserError(f"{key}={value}: must be at least {least}.")
    if isinstance(value, int) and value > _LARGEST:
        raise UserError(f"{key}={value}: must be at most {_LARGEST:,}.")


_MOST_BUCKET_MB = 1_000_000

# Beyond this value, mixup's weight is always one half.
_LARGEST_ALPHA = 1000

# In milliseconds it must fit in 31 bits.
_LONGEST_TIMEOUT_S = 2_000_000


def positive(key: str, value: float | None, instead: str = "") -> None:
    if value is not None and not 0 < value < float("inf"):
        raise UserError(f"{key}={value}: must be a finite number above 0.{instead and ' ' + instead}")


@dataclass(frozen=True)
class Group:
    """A closed group. It is frozen; `dataclasses.replace` makes a changed copy."""

    def check(self) -> None:
        """Raises: UserError: a field is out of its range, also in the groups within this one."""
        for value in vars(self).values():
            if isinstance(value, Group):
                value.check()


@dataclass(frozen=True)
class DeviceConfig(Group):
    name: str = MISSING
    fallback: str = MISSING

    def check(self) -> None:
        one_of("device", self.name, DEVICES)
        one_of("device.fallback", self.fallback, ("cpu", "error"))


@dataclass(frozen=True)
class StrategyConfig(Group):
    name: str = MISSING
    world_size: int | str = MISSING
    threads_per_rank: int | str = MISSING
    pin_ranks: bool = MISSING
    backend: str = MISSING
    master_addr: str = MISSING
    master_port: int = MISSING
    timeout_s: float = MISSING
    max_restarts: int = MISSING
    wrap_single_rank: bool = MISSING
    bucket_cap_mb: float = MISSING
    gradient_as_bucket_view: bool = MISSING
    static_graph: bool = MISSING
    find_unused_parameters: bool = MISSING
    comm_hook: str = MISSING
    shard_optimizer: bool | str = MISSING

    def check(self) -> None:
        one_of("strategy", self.name, ("ddp", "single"))
        one_of("strategy.backend", self.backend, ("auto", "gloo", "nccl"))
        one_of("strategy.comm_hook", self.comm_hook, ("none", "fp16", "bf16", "powersgd", "shared_memory"))
        if isinstance(self.shard_optimizer, str) and self.shard_optimizer != "auto":
            raise UserError(f"strategy.shard_optimizer={self.shard_optimizer}: must be true, false or auto.")
        if self.shard_optimizer is True and self.comm_hook != "shared_memory":
            raise UserError(
                f"strategy.shard_optimizer=true: needs strategy.comm_hook=shared_memory, not {self.comm_hook}: "
                "the ranks exchange their shards through it."
            )
        positive("strategy.bucket_cap_mb", self.bucket_cap_mb)
        if self.bucket_cap_mb > _MOST_BUCKET_MB:
            raise UserError(f"strategy.bucket_cap_mb={self.bucket_cap_mb}: must be at most {_MOST_BUCKET_MB}.")
        if not 1 <= self.timeout_s <= _LONGEST_TIMEOUT_S:
            raise UserError(f"strategy.timeout_s={self.timeout_s}: must be in [1, {_LONGEST_TIMEOUT_S:,}], in seconds.")
        at_least("strategy.max_restarts", self.max_restarts, 0)
        if not 0 <= self.master_port < 2**16:
            raise UserError(f"strategy.master_port={self.master_port}: must be in [0, 65535]; 0 means any free port.")
        if isinstance(self.world_size, str) and self.world_size != "auto":
            raise UserError(f"strategy.world_size={self.world_size}: must be a number of ranks or auto.")
        if isinstance(self.world_size, int):
            at_least("strategy.world_size", self.world_size, 1)
        if self.name == "single" and (self.world_size != 1 or self.wrap_single_rank):
            raise UserError(
                "strategy=single: runs one plain process, so it can't be combined with strategy.world_size="
                f"{self.world_size} strategy.wrap_single_rank={str(self.wrap_single_rank).lower()}. Use strategy=ddp."
            )
        if isinstance(self.threads_per_rank, str) and self.threads_per_rank != "auto":
            raise UserError(f"strategy.threads_per_rank={self.threads_per_rank}: must be a number of threads or auto.")
        if isinstance(self.threads_per_rank, int):
            at_least("strategy.threads_per_rank", self.threads_per_rank, 1)
            if self.threads_per_rank > _MOST_THREADS:
                raise UserError(f"strategy.threads_per_rank={self.threads_per_rank}: must be at most {_MOST_THREADS}.")


@dataclass(frozen=True)
class TrainingConfig(Group):
    epochs: int = MISSING
    max_steps: int | None = MISSING
    lap_steps: int | None = MISSING
    batch_size: int = MISSING
    batch_scope: str = MISSING
    num_microbatches: int = MISSING
    gradient_clip_norm: float | None = MISSING
    steps_per_execution: int = MISSING
    eval_batch_size: int = MISSING
    label_smoothing: float = MISSING
    mixup_alpha: float = MISSING
    ema_decay: float | None = MISSING
    swa_start_epoch: int | None = MISSING
    precision: str = MISSING
    matmul_precision: str = MISSING
    compile: bool = MISSING
    cudnn_benchmark: bool = MISSING
    early_stopping_patience: int | None = MISSING
    time_limit_s: float | None = MISSING
    checkpoint: str | None = MISSING

    @property
    def num_laps(self) -> int:
        """The number of laps of the training: its epochs, or max_steps / steps_per_lap."""
        return num_laps(vars(self))

    @property
    def steps_per_lap(self) -> int | None:
        """Optimizer steps of a lap; None: a lap is an epoch."""
        return steps_per_lap(vars(self))

    @property
    def lap_word(self) -> str:
        """The word for what is timed as one: `epoch`, or `lap` if it is a number of steps."""
        return "epoch" if self.max_steps is None else "lap"

    @property
    def length(self) -> str:
        """What sets the length of the training, for messages."""
        if self.max_steps is None:
            return f"training.epochs={self.epochs}"
        return f"training.max_steps={self.max_steps}, which is {counted(self.num_laps, 'lap')}"

    def check(self) -> None:
        for key in (
            "epochs", "max_steps", "lap_steps", "batch_size", "num_microbatches", "steps_per_execution",
            "eval_batch_size",
        ):  # fmt: skip
            at_least(f"training.{key}", getattr(self, key), 1)
        at_least("training.early_stopping_patience", self.early_stopping_patience, 1)
        positive("training.gradient_clip_norm", self.gradient_clip_norm, "null turns clipping off.")
        positive("training.time_limit_s", self.time_limit_s, "null: no limit.")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"training.label_smoothing={self.label_smoothing}: must be in [0, 1), a fraction.")
        if not 0 <= self.mixup_alpha <= _LARGEST_ALPHA:
            raise UserError(
                f"training.mixup_alpha={self.mixup_alpha}: must be in [0, {_LARGEST_ALPHA}]; 0 turns mixup off."
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"training.ema_decay={self.ema_decay}: must be in (0, 1); null turns it off.")
        at_least("training.swa_start_epoch", self.swa_start_epoch, 0)
        if self.ema_decay is not None and self.swa_start_epoch is not None:
            raise UserError(
                f"training.swa_start_epoch={self.swa_start_epoch}: can't be combined with training.ema_decay="
                f"{self.ema_decay}: both average the weights. Set one of them to null."
            )
        one_of("training.batch_scope", self.batch_scope, ("per_rank", "global"))
        one_of("training.precision", self.precision, PRECISIONS)
        one_of("training.matmul_precision", self.matmul_precision, MATMUL_PRECISIONS)


@dataclass(frozen=True)
class MeasureConfig(Group):
    warmup_epochs: int | str = MISSING
    breakdown: bool = MISSING
    peak: bool = MISSING
    bare_loop: bool = MISSING
    sample_interval_s: float | None = MISSING
    memory_warning: float = MISSING
    target_accuracy: float | None = MISSING
    target_score: float | None = MISSING
    target_interval: float | None = MISSING
    max_repeats: int = MISSING

    def check(self) -> None:
        at_least("measure.max_repeats", self.max_repeats, 1)
        if self.sample_interval_s is not None and not 0.01 <= self.sample_interval_s < math.inf:
            raise UserError(
                f"measure.sample_interval_s={self.sample_interval_s}: must be a finite number of at least 0.01 "
                "seconds; null turns sampling off."
            )
        if not 0 < self.memory_warning <= 1:
            raise UserError(f"measure.memory_warning={self.memory_warning}: must be in (0, 1], a fraction.")
        if self.target_interval is not None and not 0 < self.target_interval < 1:
            raise UserError(f"measure.target_interval={self.target_interval}: must be in (0, 1), a fraction.")
        if isinstance(self.warmup_epochs, str) and self.warmup_epochs != "auto":
            raise UserError(f"measure.warmup_epochs={self.warmup_epochs}: must be a number of epochs or auto.")
        if isinstance(self.warmup_epochs, int):
            at_least("measure.warmup_epochs", self.warmup_epochs, 0)
        if self.target_accuracy is not None and not 0 < self.target_accuracy <= 1:
            raise UserError(f"measure.target_accuracy={self.target_accuracy}: must be in (0, 1], a fraction.")
        if self.target_score is not None and not math.isfinite(self.target_score):
            raise UserError(f"measure.target_score={self.target_score}: must be a finite number.")
        if self.target_accuracy is not None and self.target_score is not None:
            raise UserError(
                f"measure.target_score={self.target_score}: can't be combined with measure.target_accuracy="
                f"{self.target_accuracy}. Set one of them to null."
            )

    @property
    def target(self) -> float | None:
        """The validation score to reach, whichever key sets it."""
        return self.target_accuracy if self.target_score is None else self.target_score


@dataclass(frozen=True)
class ScoreConfig(Group):
    metric: str | None = None
    name: str | None = None
    unit: str | None = None
    direction: str | None = None

    @property
    def settings(self) -> dict[str, str]:
        """The score for `LoggedScore.of`; by default the validation loss."""
        given = {key: value for key, value in vars(self).items() if value is not None}
        return given or {"metric": "val_loss", "name": "loss", "direction": "min"}

    def check(self) -> None:
        given = {key: value for key, value in vars(self).items() if value is not None}
        if given and not (self.metric and self.direction):
            key, value = next(iter(given.items()))
            raise UserError(f"task.score.{key}={value}: needs task.score.metric and task.score.direction. Set both.")
        try:
            LoggedScore.of(self.settings)
        except ValueError as error:
            raise UserError(f"task.{error}") from error


@dataclass(frozen=True)
class TaskConfig(Group):
    """The task. `module`, `data` and `score` are those of the task `own`; `module` and `data` are open groups."""

    name: str = MISSING
    module: dict[str, Any] = field(default_factory=lambda: {"_target_": None})
    data: dict[str, Any] = field(default_factory=lambda: {"_target_": None})
    score: ScoreConfig = field(default_factory=ScoreConfig)

    def check(self) -> None:
        super().check()
        one_of("task", self.name, TASKS)


@dataclass(frozen=True)
class SweepConfig(Group):
    on_failure: str = MISSING
    resume: str | None = MISSING
    dry_run: bool = MISSING
    notify: str | None = MISSING

    def check(self) -> None:
        one_of("sweep.on_failure", self.on_failure, ("continue", "stop"))


@dataclass(frozen=True)
class SecurityConfig(Group):
    allowed_targets: list[str] = MISSING


@dataclass(frozen=True)
class Config(Group):
    """The configuration of a run. Groups that are plain dicts are open: the constructor that `_target_` names is their
    schema. The defaults of open groups mean none, and are those of the option `none` in conf/."""

    device: DeviceConfig = field(default_factory=DeviceConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    dataset: dict[str, Any] = field(default_factory=lambda: {"_target_": None})
    model: dict[str, Any] = field(default_factory=lambda: {"_target_": None})
    optimizer: dict[str, Any] = field(default_factory=lambda: {"_target_": None})
    scheduler: dict[str, Any] = field(default_factory=lambda: {"_target_": None})
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)
    callbacks: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    profiler: dict[str, Any] = field(default_factory=lambda: {"_target_": None})
    seed: int = MISSING
    optimized_metric: Any = MISSING  # a name, or a list of names

    def open_group(self, name: str) -> dict[str, Any]:
        """An open group by its name: dataset, model, ..., task.module or task.data."""
        group = attrgetter(name)(self)
        assert isinstance(group, dict), name
        return group

    @property
    def has_validation(self) -> bool:
        """Whether part of the training set is held out for validation."""
        return bool(self.dataset.get("val_fraction", 1))  # a user's class may have no such key

    @property
    def score(self) -> Score:
        """What the task is scored by."""
        return LoggedScore.of(self.task.score.settings).score if self.task.name == OWN else SCORES[self.task.name]

    def as_dict(self) -> dict[str, Any]:
        """A copy as plain dicts, lists, numbers, strings and None, as run.json and loggers get it."""
        return asdict(self)

    def check(self) -> None:
        super().check()
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed={self.seed}: must be in [0, 2**32).")
        names = self.optimized_metric if isinstance(self.optimized_metric, list) else [self.optimized_metric]
        for name in names if self.optimized_metric is not None else []:
            if name in ACCURACY_METRICS and self.score != ACCURACY:
                raise UserError(
                    f"optimized_metric={name}: this task is scored by {self.score.name}. Use "
                    f"{name.replace('accuracy', 'score')}."
                )
            allowed = (*OPTIMIZED_METRICS, *(ACCURACY_METRICS if self.score == ACCURACY else ()))
            one_of("optimized_metric", name, allowed, "Several: [val_score,epoch_time_s].")
        if not names:
            raise UserError("optimized_metric=[]: must not be empty. Use null for no objective.")


def register_schema() -> None:
    """Put the schema into Hydra's ConfigStore, where the defaults list of conf/config.yaml finds it."""
    store("schema", Config)


def store(name: str, schema: type[Group]) -> None:
    """Put a schema into Hydra's ConfigStore. The composed configuration is writable; the `schema` object is not."""
    node = OmegaConf.structured(schema)
    _make_writable(node)
    if schema is Config:
        OmegaConf.set_struct(node.task.module, False)  # any key may be set, without a +
        OmegaConf.set_struct(node.task.data, False)
    ConfigStore.instance().store(name=name, node=node, provider="laptime")


def _make_writable(node: DictConfig) -> None:
    """OmegaConf makes nodes of frozen dataclasses read-only, so that Hydra could not set a value. Undo that."""
    OmegaConf.set_readonly(node, None)
    for key in node:
        group = node._get_node(key)
        if isinstance(group, DictConfig) and not group._is_missing():
            _make_writable(group)


def closed_groups(schema: type[Group] = Config) -> dict[str, type[Group]]:
    """The closed groups of a schema by full key, each with its dataclass."""
    types = {field.name: field.type for field in fields(schema)}
    groups = {name: kind for name, kind in types.items() if isinstance(kind, type) and issubclass(kind, Group)}
    inner = {f"{name}.{key}": value for name, kind in groups.items() for key, value in closed_groups(kind).items()}
    return groups | inner
