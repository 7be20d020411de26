"""Facts about a run, for conf files: `${laptime:run_dir}`, `run_label`, `experiment_name` and `num_laps`.

They are not settings. All but num_laps are known only when the run starts. The resolver works wherever Laptime resolves
a configuration: in Hydra's jobs, in torchrun's ranks and in `laptime.run`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from laptime.record.laps import num_laps

# The value of ${laptime:run_dir} before the run's directory exists: the current folder, spelled as nobody types it.
DIRECTORY_TO_COME = "./."


@dataclass(frozen=True)
class RunValues:
    """What the resolver returns.

    Attributes:
        run_dir: absolute, or `DIRECTORY_TO_COME`.
        run_label: the swept values of a sweep's run, as in `seed=1`; otherwise empty.
        experiment_name: the option of the group `experiment`; None: none was chosen.
    """

    run_dir: str = DIRECTORY_TO_COME
    run_label: str = ""
    experiment_name: str | None = None


_NO_RUN = RunValues()
_values: ContextVar[RunValues] = ContextVar("laptime_run_values", default=_NO_RUN)


def register_resolver() -> None:
    """Let OmegaConf resolve `${laptime:...}`."""
    OmegaConf.register_new_resolver("laptime", _value, replace=True)


@contextmanager
def known_run(run_dir: Path, run_label: str = "", experiment_name: str | None = None) -> Iterator[None]:
    """Resolve configurations for this run."""
    token = _values.set(RunValues(str(run_dir), run_label, experiment_name))
    try:
        yield
    finally:
        _values.reset(token)


def _value(name: str, *, _root_: DictConfig) -> str | int | None:
    if name == "num_laps":
        return num_laps(_root_.training)
    values = asdict(_values.get())
    if name not in values:
        raise ValueError(f"${{laptime:{name}}}: unknown name. Use one of: {', '.join([*values, 'num_laps'])}")
    value: str | None = values[name]
    return value
