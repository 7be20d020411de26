"""The arguments of a timer, and the facts that it needs about the training."""

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from laptime.hooks.guard import Guard
from laptime.hooks.identity import HydraJob, plain
from laptime.record.logged_score import LoggedScore

Timer = Literal["LapTimer", "laps", "transformers"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The arguments that all timers share.

    Attributes:
        every: batches per lap; None: a lap is an epoch.
        warmup_laps: number of first laps that are left out of all figures.
        samples, tokens: functions that return the number of samples or tokens of a batch; None: `laptime.lap.count`.
        config: settings that distinguish this run from others, nested or by full key; None: detected.
        seed: the seed of the run; None: detected.
        name, dataset: names of model and data in reports; None: their class names.
        dir: the directory to write to; None: the output directory of Hydra's job, or laptime_runs/DATE/TIME.
        breakdown: whether to time the phases of some steps in the warm-up lap.
        flops: floating-point operations of a batch on one rank, forward and backward; True: count them in a step of
            the warm-up lap; False: don't.
        peak: whether to measure the fastest matrix product after the training.
        score: what the training is scored by, and the name of its logged values; None: accuracy. See
            `laptime.record.logged_score`.

    Raises:
        ValueError: an argument is out of range.
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
    score: Mapping[str, str] | None = None

    @cached_property
    def logged_score(self) -> LoggedScore | None:
        """The score that the user has named; None: none, so that accuracy is the score."""
        return None if self.score is None else LoggedScore.of(self.score)

    def __post_init__(self) -> None:
        if self.every is not None and (not is_int(self.every) or self.every < 1):
            raise ValueError(f"every={self.every!r}: must be at least 1 batch. Leave it out to time epochs.")
        if not is_int(self.warmup_laps) or self.warmup_laps < 0:
            raise ValueError(f"warmup_laps={self.warmup_laps!r}: must be at least 0.")
        if self.seed is not None and not is_int(self.seed):
            raise ValueError(f"seed={self.seed!r}: must be a whole number.")
        if not isinstance(self.flops, bool | int | float) or self.flops < 0:
            raise ValueError(
                f"flops={self.flops!r}: must be True, False, or the number of floating-point operations per batch."
            )
        for key in ("name", "dataset"):
            if not isinstance(getattr(self, key), str | None):
                raise ValueError(f"{key}={getattr(self, key)!r}: must be a string.")
        if self.config is not None and not isinstance(self.config, Mapping):
            raise ValueError(f"config={self.config!r}: must be a dictionary.")
        _ = self.logged_score  # raises, if a key is wrong


def picklable(settings: Settings, guard: Guard) -> Settings:
    """Return the settings without functions that can't be pickled, to be sent to a spawned process."""
    removed: dict[str, None] = {}
    for key in ("samples", "tokens"):
        try:
            pickle.dumps(getattr(settings, key))
        except Exception:
            removed[key] = None
            guard.mark_missing(
                key,
                f"the function can't be pickled, so it can't be sent to a spawned process. For {key}=, use a "
                "function at the top level of a module",
            )
    return replace(settings, **removed) if removed else settings  # type: ignore[arg-type]


def config_of(settings: Settings, job: HydraJob | None, detect: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the settings that distinguish runs: the user's config=, else Hydra's, else those that `detect` returns."""
    if settings.config is not None:
        config: dict[str, Any] = plain(settings.config)
        return config
    return job.settings if job is not None and job.config is not None else detect()


def length_of(sized: Any) -> int | None:
    """Return the length of an object; None: it has none."""
    try:
        return len(sized)
    except (TypeError, NotImplementedError):
        return None


def is_int(number: Any) -> bool:
    """Whether a value is an int and not a bool."""
    return isinstance(number, int) and not isinstance(number, bool)


@dataclass(frozen=True, kw_only=True)
class Training:
    """The facts about a training that are known when it starts.

    Attributes:
        model, dataset: names of model and data.
        num_parameters, num_train: numbers of parameters and of training samples; None: unknown.
        precision: the precision in Lightning's notation, e.g. 32-true or bf16-mixed.
        batches_per_step: batches per optimizer step (gradient accumulation); None: unknown.
        num_batches: remaining batches of the training; None: unknown.
        num_epochs: epochs of the training; None: unknown.
        backend: the backend of the process group; None: there is no group.
        strategy: how the ranks train together, e.g. ddp.
        config: settings that distinguish this run from others, nested.
        seed: the seed of the run; None: unknown.
        classes: the user's classes as `module.Class`; their source is hashed.
        num_loaders: number of DataLoaders that are combined in each batch.
        is_compiled: whether the module or one of its submodules is compiled.
        strategy_settings: arguments of the strategy, e.g. of DDP.
        is_profiled: whether a profiler is active.
        has_workers: whether DataLoader workers share the cores.
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
