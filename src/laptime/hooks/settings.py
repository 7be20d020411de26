"""What a user of a timer may set, and what a timer must know of the training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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
        ValueError: every or warmup_laps is too small.
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
        if self.every is not None and self.every < 1:
            raise ValueError(f"every={self.every}: must be at least 1 batch. Leave it out to time epochs.")
        if self.warmup_laps < 0:
            raise ValueError(f"warmup_laps={self.warmup_laps}: must be at least 0.")


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
    is_profiled: bool = False
    has_workers: bool = False
