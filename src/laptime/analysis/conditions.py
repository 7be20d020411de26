"""Conditions of a run that its configuration does not contain: machine, data, versions, code and settings."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields

from laptime.analysis.load import Run
from laptime.machine.environment import is_set_while_running
from laptime.record.schema import Lap
from laptime.text import escape_control_chars

# Conditions that must be equal for two figures to be comparable.
MUST_MATCH = ("machine", "checksum", "instructions")


@dataclass(frozen=True)
class Conditions:
    """Conditions in which two groups of the same configuration can differ.

    Attributes:
        machine: CPU, number of usable cores, and the accelerator used.
        checksum: the checksum of the data.
        nodes: number of nodes (torchrun processes).
        torch: the version of torch.
        python: the version of Python.
        code: hash of Laptime's code and of the classes that the configuration names.
        instructions: the CPU instruction set that torch used, e.g. AVX2; empty: unknown.
        settings: environment variables that change the timing, as `NAME=value`; also torch's number of threads if it
            differs from strategy.threads_per_rank.
        lap: the unit that is timed, e.g. `epoch`. If Laptime only timed the training, it has the timer's name, e.g.
            `20 batches by LapTimer`.
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
        """The values that must be equal for two figures to be comparable. A comparison lists the other differences."""
        return tuple(getattr(self, name) for name in MUST_MATCH)


CONDITIONS = tuple(field.name for field in fields(Conditions))


# An environment variable or a Python option with its value, which ends before the next one.
_NAME = r"(?:python -X dev|[A-Za-z_][^\s=]*)"
_SETTING = re.compile(rf"{_NAME}=.*?(?= {_NAME}=|$)")


def differing_settings(settings: Sequence[str]) -> list[str]:
    """Return texts of `Conditions.settings` without the variables that all contain, or `none` if nothing is left."""
    variables = [_SETTING.findall(text) for text in settings]
    shared = set.intersection(*map(set, variables)) if variables else set()
    return [" ".join(variable for variable in row if variable not in shared) or "none" for row in variables]


def without_torchruns(settings: str) -> str:
    """Remove the variables that torch and its launchers set from a text of `Conditions.settings`.

    Older versions of Laptime recorded them as settings.
    """
    variables = _SETTING.findall(settings)
    return " ".join(variable for variable in variables if not is_set_while_running(variable.partition("=")[0]))


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
    variables = run.environment.settings or {}  # older records have none
    words = [f"{name}={value}" for name, value in sorted(variables.items()) if not is_set_while_running(name)]
    num_threads = (run.environment.torch or {}).get("num_threads")
    if num_threads is not None and num_threads != run.strategy.threads_per_rank:
        words.append(f"threads={num_threads}")
    return escape_control_chars(" ".join(words))
