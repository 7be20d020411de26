"""The record of one run, run.json: how it begins, is filled in, is written down and is read back."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from laptime.record import schema
from laptime.record.files import RUN_FILE, finite, now, read_record, write_atomically
from laptime.record.schema import RunError, Status

# Filled in as a whole while a run is set up: until then each of their keys is null.
_SET_UP = ("device", "dataset", "model", "strategy", "batch")
_PLACE = re.compile(r" - at `\$\.?(?P<path>.*)`$")
_PART = re.compile(r"(\w+)|\[(\d+)\]")


class RunRecord(Struct, kw_only=True):
    """What is known of a run.

    Attributes:
        run_dir: absolute, where the run was made; None: an old record lacks it.
        run_label: the swept values of a sweep's run, as in `seed=1`; empty for a single run; None: Laptime timed
            somebody else's training.
        experiment_name: the option of the group `experiment`; None: none was chosen.
        runs_at_once: runs of the sweep that shared the machine, this one included; None: as for `run_label`.
        config: as resolved, secrets masked.
        hashed_config: what makes two runs the same, by full key: see `laptime.config.identity`.
        config_hash, group_hash: of that, with and without the seed.
        command: as typed, secrets masked.
        device, dataset, model, strategy, batch, environment: None: the run ended before it was set up.
        seed: None: not known, where Laptime timed somebody else's training.
        missing: why a figure is null, by section or key: `breakdown`, `peak.mfu`.
    """

    schema_version: int = schema.SCHEMA_VERSION
    status: Status = "running"
    error: RunError | None = None
    started_at: str | None = None
    ended_at: str | None = None
    run_dir: str | None = None
    run_label: str | None = None
    experiment_name: str | None = None
    runs_at_once: int | None = None
    config: dict[str, Any] | None = None
    hashed_config: dict[str, Any] | None = None
    config_hash: str | None = None
    group_hash: str | None = None
    seed: int | None = None
    device: schema.Device | None = None
    dataset: schema.Dataset | None = None
    model: schema.Model | None = None
    strategy: schema.Strategy | None = None
    batch: schema.Batch | None = None
    lap: schema.Lap = field(default_factory=schema.Lap)
    timing: schema.Timing = field(default_factory=schema.Timing)
    result: schema.Result = field(default_factory=schema.Result)
    resources: schema.Resources = field(default_factory=schema.Resources)
    communication: schema.Communication = field(default_factory=schema.Communication)
    contention: schema.Contention = field(default_factory=schema.Contention)
    breakdown: schema.Breakdown = field(default_factory=schema.Breakdown)
    peak: schema.Peak = field(default_factory=schema.Peak)
    bare_loop: schema.BareLoop = field(default_factory=schema.BareLoop)
    noise: schema.Noise = field(default_factory=schema.Noise)
    quality: schema.Quality = field(default_factory=schema.Quality)
    attempts: list[schema.Attempt] = field(default_factory=list)
    environment: schema.Environment | None = None
    git: schema.Git = field(default_factory=schema.Git)
    command: list[str] | None = None
    missing: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, run_dir: Path) -> "RunRecord":
        """Read run.json of a run directory.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is not JSON, of another schema version, or a value is of another type than the schema's.
        """
        return cls.of(read_record(run_dir))

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "RunRecord":
        """A record from plain values.

        Args:
            content: of run.json, of this schema version and by the names of today: see `read_record`.

        Raises:
            ValueError: says which value is of another type than the schema's.
        """
        if content.get("status") is None:
            raise ValueError(f"damaged: {RUN_FILE} has no status")
        present = {key: value for key, value in content.items() if not _is_unknown(key, value)}
        try:
            return msgspec.convert(present, cls)
        except msgspec.ValidationError as error:
            raise ValueError(_in_words(str(error), content)) from error

    @property
    def is_laptime_training(self) -> bool:
        """Whether Laptime trained; otherwise it timed somebody else's training, and `config` holds any keys."""
        return self.lap.timer == "training"

    @property
    def laptime_config(self) -> dict[str, Any]:
        """`config`, where its keys are Laptime's; otherwise empty."""
        return (self.config or {}) if self.is_laptime_training else {}

    @property
    def sweep_settings(self) -> dict[str, bool | int | float | str]:
        """What loggers show beside the configuration."""
        if not self.is_laptime_training:
            return {}
        return {"experiment_name": str(self.experiment_name), "runs_at_once": self.runs_at_once or 1}

    def to_json(self) -> dict[str, Any]:
        """The plain values of run.json, every key of the schema. What JSON has no words for, infinite values and NaN,
        is null."""
        values: dict[str, Any] = finite(msgspec.to_builtins(self))
        for name in _SET_UP:
            if values[name] is None:
                values[name] = dict.fromkeys(getattr(schema, name.title()).__struct_fields__)
        return values

    def write(self, run_dir: Path) -> None:
        """Write run.json as a whole or not at all."""
        text = json.dumps(self.to_json(), indent=2, allow_nan=False)
        write_atomically(run_dir / RUN_FILE, text.encode() + b"\n")

    def start_attempt(self, attempt: int) -> None:
        """Note that the ranks start, for the first time (0) or again; an attempt that never said how it ended died."""
        for earlier in self.attempts:
            if earlier.status == "running":
                earlier.status = "failed"
                earlier.error = RunError(type="RankDied", message="the ranks ended without a word")
        self.status, self.error, self.ended_at = "running", None, None
        self.attempts.append(schema.Attempt(attempt=attempt, started_at=now(), status="running"))

    def end_attempt(self, status: Status, error: RunError | None) -> None:
        """Note how the run ended, and with it its last attempt."""
        ended_at = now()
        for each in (self, self.attempts[-1]):
            each.status, each.error, each.ended_at = status, error, ended_at


def mark_launcher_died(run_dir: Path, message: str) -> None:
    """Note that a run has failed whose launching process is gone; one that had ended before stays as it is."""
    record = RunRecord.read(run_dir)
    if record.status == "running":
        record.end_attempt("failed", RunError(type="LauncherDied", message=message))
        record.write(run_dir)


def _is_unknown(key: str, value: Any) -> bool:
    """Whether a section says nothing: the run ended before it was known, or an older Laptime did not write it."""
    if value is None or not isinstance(value, dict):
        return value is None
    return key in _SET_UP and all(each is None for each in value.values())


def _in_words(message: str, content: Mapping[str, Any]) -> str:
    """What msgspec says is wrong with a value, by its full key."""
    place = _PLACE.search(message)
    path = "" if place is None else place["path"]
    missing = re.match(r"Object missing required field `(\w+)`", message)
    if missing is not None:
        return f"damaged, or of an older Laptime: {RUN_FILE} has no {'.'.join(filter(None, (path, missing[1])))}"
    if "[...]" in path:  # of a mapping, msgspec does not say which value
        return f"damaged: {path.replace('[...]', '')}: {message.partition(' - at')[0].replace('`', '')}"
    value: Any = content
    for name, number in _PART.findall(path):
        if name and isinstance(value, Mapping):
            value = value.get(name)
        elif number and isinstance(value, list):
            value = value[int(number)]
    return f"damaged: {path} is {str(value)[:40]}"
