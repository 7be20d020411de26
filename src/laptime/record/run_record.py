"""The record of one run: creating, updating, writing and reading run.json."""

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
from laptime.record.score import ACCURACY, Score

# The setup of a run fills in these sections. Until then all their keys are null.
_SETUP_SECTIONS = ("device", "dataset", "model", "strategy", "batch")
_PATH = re.compile(r" - at `\$\.?(?P<path>.*)`$")
_KEY_OR_INDEX = re.compile(r"(\w+)|\[(\d+)\]")


class RunRecord(Struct, kw_only=True):
    """The content of run.json.

    Attributes:
        run_dir: the absolute path of the run directory when the run started; None: an old record lacks it.
        run_label: the swept values of a sweep's run, e.g. `seed=1`; empty for a single run; None: Laptime timed
            somebody else's training.
        experiment_name: the option of the group `experiment`; None: none was chosen.
        runs_at_once: number of the sweep's runs that shared the machine, including this one; None: Laptime timed
            somebody else's training.
        config: the resolved configuration, with secrets masked.
        hashed_config: the values that identify a run, by full key. See `laptime.config.identity`.
        config_hash, group_hash: hashes of hashed_config, with and without the seed.
        command: the command that the user typed, with secrets masked.
        device, dataset, model, strategy, batch, environment: descriptions of the run; None: it ended during its setup.
        seed: the seed; None: not known, because Laptime timed a training that it did not start.
        missing: the reasons why figures are null, by section or key: `breakdown`, `peak.mfu`.
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
            FileNotFoundError: there is no run.json.
            ValueError: the file is not JSON, has another schema version, or a value has a wrong type.
        """
        return cls.of(read_record(run_dir))

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "RunRecord":
        """Make a record from plain values.

        Args:
            content: the content of run.json as `read_record` returns it, with current key names.

        Raises:
            ValueError: a value has a wrong type; names the value.
        """
        if content.get("status") is None:
            raise ValueError(f"damaged: {RUN_FILE} has no status")
        present = {key: value for key, value in content.items() if not _is_unknown(key, value)}
        try:
            return msgspec.convert(present, cls)
        except msgspec.ValidationError as error:
            raise ValueError(_describe(str(error), content)) from error

    @property
    def is_laptime_training(self) -> bool:
        """Whether Laptime trained. Otherwise it timed another program's training, and `config` has arbitrary keys."""
        return self.lap.timer == "training"

    @property
    def lap_word(self) -> str:
        """What was timed as one: `epoch` in trainings of Laptime by epochs, otherwise `lap`."""
        return "epoch" if self.is_laptime_training and self.lap.unit == "epoch" else "lap"

    @property
    def laptime_config(self) -> dict[str, Any]:
        """`config` if Laptime trained; otherwise empty."""
        return (self.config or {}) if self.is_laptime_training else {}

    @property
    def score(self) -> Score:
        """What the run is scored by; accuracy if nothing was measured."""
        return self.result.score or ACCURACY

    @property
    def target(self) -> float | None:
        """The validation score to reach, from measure.target_score or measure.target_accuracy; None: there is none."""
        measure = self.laptime_config.get("measure", {})
        target: float | None = measure.get("target_score")
        return measure.get("target_accuracy") if target is None else target

    @property
    def sweep_settings(self) -> dict[str, bool | int | float | str]:
        """The settings that loggers show in addition to the configuration."""
        if not self.is_laptime_training:
            return {}
        return {"experiment_name": str(self.experiment_name), "runs_at_once": self.runs_at_once or 1}

    def to_json(self) -> dict[str, Any]:
        """Return the plain values of run.json, with every key of the schema. Infinite values and NaN are null."""
        values: dict[str, Any] = finite(msgspec.to_builtins(self))
        for name in _SETUP_SECTIONS:
            if values[name] is None:
                values[name] = dict.fromkeys(getattr(schema, name.title()).__struct_fields__)
        return values

    def write(self, run_dir: Path) -> None:
        """Replace run.json atomically."""
        text = json.dumps(self.to_json(), indent=2, allow_nan=False)
        write_atomically(run_dir / RUN_FILE, text.encode() + b"\n")

    def start_attempt(self, attempt: int) -> None:
        """Record a start of the ranks (0: the first). An earlier attempt that is still running is marked as died."""
        for earlier in self.attempts:
            if earlier.status == "running":
                earlier.status = "failed"
                earlier.error = RunError(type="RankDied", message="the ranks ended without reporting a result")
        self.status, self.error, self.ended_at = "running", None, None
        self.attempts.append(schema.Attempt(attempt=attempt, started_at=now(), status="running"))

    def end_attempt(self, status: Status, error: RunError | None) -> None:
        """Record how the run and its last attempt ended."""
        ended_at = now()
        for part in (self, self.attempts[-1]):
            part.status, part.error, part.ended_at = status, error, ended_at


def mark_launcher_died(run_dir: Path, message: str) -> None:
    """Mark a run as failed because its launching process has died. A run that had ended before is left unchanged."""
    record = RunRecord.read(run_dir)
    if record.status == "running":
        record.end_attempt("failed", RunError(type="LauncherDied", message=message))
        record.write(run_dir)


def _is_unknown(key: str, value: Any) -> bool:
    """Whether a section is empty because the run ended before filling it in, or because an older Laptime wrote it."""
    if value is None or not isinstance(value, dict):
        return value is None
    return key in _SETUP_SECTIONS and all(item is None for item in value.values())


def _describe(message: str, content: Mapping[str, Any]) -> str:
    """Return msgspec's error message with the full key of the value."""
    match = _PATH.search(message)
    path = "" if match is None else match["path"]
    missing = re.match(r"Object missing required field `(\w+)`", message)
    if missing is not None:
        key = ".".join(filter(None, (path, missing[1])))
        return f"damaged, or written by an older Laptime: {RUN_FILE} has no {key}"
    if "[...]" in path:  # in mappings, msgspec does not name the key
        return f"damaged: {path.replace('[...]', '')}: {message.partition(' - at')[0].replace('`', '')}"
    value: Any = content
    for name, number in _KEY_OR_INDEX.findall(path):
        if name and isinstance(value, Mapping):
            value = value.get(name)
        elif number and isinstance(value, list):
            value = value[int(number)]
    return f"damaged: {path} is {str(value)[:40]}"
