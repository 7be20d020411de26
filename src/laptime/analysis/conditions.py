"""What the figures of two runs depend on beside their configuration: machine, data, versions, code and settings."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

from laptime.analysis.load import Run
from laptime.machine.environment import is_set_while_running
from laptime.record.schema import Lap
from laptime.text import escape_control_chars

# What must be equal for two figures to be compared at all.
MUST_MATCH = ("machine", "checksum", "instructions")


@dataclass(frozen=True)
class Conditions:
    """What two groups can differ in beside their configuration.

    Attributes:
        machine: CPU, number of usable cores, and the accelerator that trained.
        checksum: of the data.
        nodes: torchruns that the ranks were shared among.
        torch: version.
        python: version.
        code: hash of Laptime's own code and of the classes that the configuration names.
        instructions: of the CPU, the best that torch used: AVX2, say; empty where it isn't known.
        settings: environment variables that change the timing, as `NAME=value`, and torch's threads where they were not
            as many as the run was given.
        lap: what is timed as one: `epoch`; with the timer, where Laptime did not train: `20 batches by LapTimer`.
    """

    machine: str
    checksum: str
    nodes: str
    torch: str
    python: str
    code: str
    instructions: str = ""
    settings: str = ""
    lap: str = "epoch"

    @property
    def must_match(self) -> tuple[str, ...]:
        """What must be equal for two figures to be compared at all; the rest is named beside the comparison."""
        return tuple(getattr(self, name) for name in MUST_MATCH)


CONDITIONS = tuple(each.name for each in fields(Conditions))


# A variable or an option of Python's, with its value: that ends before the next one.
_NAME = r"(?:python -X dev|[A-Za-z_][^\s=]*)"
_SETTING = re.compile(rf"{_NAME}=.*?(?= {_NAME}=|$)")


def differing_settings(settings: Sequence[str]) -> list[str]:
    """Texts of `Conditions.settings` without what all of them say; `none` for one that has nothing else."""
    words = [_SETTING.findall(text) for text in settings]
    shared = set.intersection(*map(set, words)) if words else set()
    return [" ".join(word for word in each if word not in shared) or "none" for each in words]


def without_torchruns(settings: str) -> str:
    """A text of `Conditions.settings` without variables that torch and its launchers set themselves, which older
    Laptimes recorded as settings."""
    return " ".join(word for word in _SETTING.findall(settings) if not is_set_while_running(word.partition("=")[0]))


def conditions_of(run: Run) -> Conditions:
    environment, device = run.environment, run.device
    machine = f"{environment.cpu}, {environment.num_usable_cores} cores"
    if device.used != "cpu":
        machine += f", {device.name}{' with operators on the CPU' if device.mps_fallback else ''}"
    return Conditions(
        machine=machine,
        checksum=str(run.dataset.checksum),
        nodes=str(run.strategy.num_nodes or 1),
        torch=str(environment.packages.get("torch")),
        python=".".join(str(environment.python).split(".")[:2]),
        code=environment.code_hash[:8],
        instructions=str((environment.torch or {}).get("cpu_capability") or ""),
        settings=_settings(run),
        lap=_lap(run.record.lap),
    )


def _lap(lap: Lap) -> str:
    unit = lap.unit if lap.num_batches is None else f"{lap.num_batches} batch{'es' if lap.num_batches > 1 else ''}"
    return unit if lap.timer == "training" else escape_control_chars(f"{unit} by {lap.timer}")


def _settings(run: Run) -> str:
    """Older records have none of them."""
    found = run.environment.settings or {}
    words = [f"{name}={value}" for name, value in sorted(found.items()) if not is_set_while_running(name)]
    given, in_force = run.strategy.threads_per_rank, run.environment.torch or {}
    if (threads := in_force.get("num_threads")) is not None and threads != given:
        words.append(f"threads={threads}")
    return escape_control_chars(" ".join(words))
