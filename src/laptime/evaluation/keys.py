"""Types and ranges of the keys of `laptime evaluate` and `laptime export`. Loads no torch.

The files in conf/ define their defaults and meanings.
"""

from dataclasses import dataclass, field

from omegaconf import MISSING

from laptime.config.schema import DEVICES, PRECISIONS, Group, SecurityConfig, at_least, one_of, positive, store
from laptime.errors import UserError

FORMATS = ("onnx", "torch_export", "torchscript")


@dataclass(frozen=True)
class DatasetConfig(Group):
    root: str | None = MISSING
    path: str | None = MISSING


@dataclass(frozen=True)
class LatencyConfig(Group):
    batch_sizes: list[int] = MISSING
    num_calls: int = MISSING
    warmup_calls: int = MISSING
    time_limit_s: float = MISSING

    def check(self) -> None:
        for size in self.batch_sizes:
            at_least("latency.batch_sizes", size, 1)
        if len(set(self.batch_sizes)) < len(self.batch_sizes):
            raise UserError(f"latency.batch_sizes={self.batch_sizes}: must not contain a size twice.")
        at_least("latency.num_calls", self.num_calls, 1)
        at_least("latency.warmup_calls", self.warmup_calls, 1)
        positive("latency.time_limit_s", self.time_limit_s)


@dataclass(frozen=True)
class TrainedRunConfig(Group):
    run: str = MISSING
    checkpoint: str = MISSING
    threads: int | None = MISSING
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    security: SecurityConfig = field(default_factory=SecurityConfig)

    def check(self) -> None:
        super().check()
        at_least("threads", self.threads, 1)
        if self.threads is not None and self.threads > 1024:
            raise UserError(f"threads={self.threads}: must be at most 1024.")


@dataclass(frozen=True)
class EvaluateConfig(TrainedRunConfig):
    device: str | None = MISSING
    precision: str | None = MISSING
    compile: bool | None = MISSING

    def check(self) -> None:
        super().check()
        if self.device is not None:
            one_of("device", self.device, DEVICES, "Laptime calls it cuda." if self.device == "gpu" else "")
        if self.precision is not None:
            one_of("precision", self.precision, PRECISIONS)


@dataclass(frozen=True)
class ExportConfig(TrainedRunConfig):
    format: list[str] = MISSING
    int8: bool = MISSING
    tolerance: float = MISSING
    num_images: int | None = MISSING

    def check(self) -> None:
        super().check()
        if not self.format:
            raise UserError(f"format=[]: must be one or more of {', '.join(FORMATS)}, or all.")
        for name in self.format:
            one_of("format", name, (*FORMATS, "all"))
        positive("tolerance", self.tolerance)
        at_least("num_images", self.num_images, 1)


SCHEMAS: dict[str, type[TrainedRunConfig]] = {"evaluate": EvaluateConfig, "export": ExportConfig}


def register(command: str) -> None:
    """Register the schema that a command's file in conf/ names."""
    store(f"{command}_schema", SCHEMAS[command])
