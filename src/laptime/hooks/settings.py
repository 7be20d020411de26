"""What a user of a timer may set, and what a timer must know of the training."""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from laptime.hooks.guard import Guard
from laptime.hooks.identity import HydraJob, plain

Timer = Literal["LapTimer", "laps", "transformers"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments that all timers share.

    Attributes:
        every: batches of a lap; None: a lap is an epoch.
        warmup_laps: laps that are trained and not counted.
        samples, tokens: from a batch to how many it holds; None: counted by `laptime.lap.count`.
        config: what tells this run from others, nested or by full key; None: found out.
        seed: of the run; None: found out.
        name, dataset: of the model and the data, as reports show them; None: the names of their classes.
        dir: where to write; None: the output directory of Hydra's job, or laptime_runs/DATE/TIME.
        breakdown: take steps of the warm-up lap apart.
        flops: of a batch on one rank, forward and backward; True: count them in a step of the warm-up lap; False:
            don't.
        peak: measure the fastest matrix product when the training is over.

    Raises:
        ValueError: one of them is of no use; says which, and what it must be.
    """

    every: int | None = None
    warmup_laps: int = 1
    samples: Callable[[Any], int] | None = None
    tokens: Callable[[Any], int] | None = None
    config: Mapping[str, Any] | None = None
    seed: int | None = None
    name: str | None = None
    dataset: str | None = None
    dir: str | None = None
    breakdown: bool = True
    flops: bool | float = True
    peak: bool = True

    def __post_init__(self) -> None:
        if self.every is not None and (not is_int(self.every) or self.every < 1):
            raise ValueError(f"every={self.every!r}: must be at least 1 batch. Leave it out to time epochs.")
        if not is_int(self.warmup_laps) or self.warmup_laps < 0:
            raise ValueError(f"warmup_laps={self.warmup_laps!r}: must be at least 0.")
        if self.seed is not None and not is_int(self.seed):
            raise ValueError(f"seed={self.seed!r}: must be a whole number.")
        if not isinstance(self.flops, bool | int | float) or self.flops < 0:
            raise ValueError(f"flops={self.flops!r}: must be True, False, or the operations of a batch.")
        for key in ("name", "dataset"):
            if not isinstance(getattr(self, key), str | None):
                raise ValueError(f"{key}={getattr(self, key)!r}: must be a text.")
        if self.config is not None and not isinstance(self.config, Mapping):
            raise ValueError(f"config={self.config!r}: must be a dictionary.")


def picklable(settings: Settings, guard: Guard) -> Settings:
    """The settings as they can be sent to a spawned process: without functions that have no name there."""
    left_out: dict[str, None] = {}
    for key in ("samples", "tokens"):
        try:
            pickle.dumps(getattr(settings, key))
        except Exception:
            left_out[key] = None
            guard.mark_missing(key, f"{key}= can't be sent to a spawned process. Define it as a function in a module")
    return replace(settings, **left_out) if left_out else settings  # type: ignore[arg-type]


def config_of(settings: Settings, job: HydraJob | None, found: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What tells a run from others: what the user gave, else what Hydra composed, else what can be found."""
    if settings.config is not None:
        config: dict[str, Any] = plain(settings.config)
        return config
    return job.settings if job is not None and job.config is not None else found()


def length_of(sized: Any) -> int | None:
    """None: it has no length, or doesn't know it."""
    try:
        return len(sized)
    except (TypeError, NotImplementedError):
        return None


def is_int(number: Any) -> bool:
    """Whether it is a whole number, and no truth value."""
    return isinstance(number, int) and not isinstance(number, bool)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is known of a training when it starts.

    Attributes:
        model, dataset: their names.
        num_parameters, num_train: None: not known.
        precision: in Lightning's words: 32-true, bf16-mixed.
        batches_per_step: of an optimizer step (gradient accumulation); None: not known.
        num_batches: that are left to train; None: not known.
        num_epochs: of the training; None: not known.
        backend: of the process group; None: there is none.
        strategy: how ranks share the work: ddp.
        config: what tells this run from others, nested.
        seed: None: not known.
        classes: of the user's, as `module.Class`, whose source is hashed.
        num_loaders: DataLoaders that a batch has a part of each of.
        is_compiled: whether the module, or a part of it, is.
        strategy_settings: of the ranks' strategy: arguments of DDP, for example.
        is_profiled: whether a profiler runs with it.
        has_workers: whether data workers take turns on its cores.
    """

    model: str
    dataset: str
    num_parameters: int | None = None
    num_train: int | None = None
    precision: str = "32-true"
    batches_per_step: int | None = 1
    num_batches: int | None = None
    num_epochs: int | None = None
    backend: str | None = None
    strategy: str = "single"
    config: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    classes: tuple[str, ...] = ()
    num_loaders: int = 1
    is_compiled: bool = False
    strategy_settings: Mapping[str, Any] = field(default_factory=dict)
    is_profiled: bool = False
    has_workers: bool = False
