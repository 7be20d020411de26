"""What is typed and would change nothing: refused. A file may hold such keys, for those runs in which they matter."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.hydra import Hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.base import Node
from omegaconf.errors import OmegaConfBaseException

from laptime.config.compose import compose
from laptime.config.overrides import key_of, parse
from laptime.config.schema import Config
from laptime.errors import UserError
from laptime.record.files import DDP_KEYS


@dataclass(frozen=True)
class _Rule:
    """When a key matters.

    Attributes:
        keys: full names; one that ends in a dot stands for all keys below it.
        matters: whether they change anything in a run of this configuration, in a sweep or not.
        needs: what to do about it, as the end of the message.
    """

    keys: tuple[str, ...]
    matters: Callable[[Config, bool], bool]
    needs: str

    def covers(self, key: str) -> bool:
        return any(key == each or (each.endswith(".") and f"{key}.".startswith(each)) for each in self.keys)


def _has_ranks_that_meet(config: Config, is_sweep: bool) -> bool:
    from laptime.ranks import torchrun
    from laptime.runner.rank_plan import num_ranks

    num = torchrun.world_size() if torchrun.is_joined() else num_ranks(config)
    return num > 1 or bool(config.strategy.wrap_single_rank)


def _trains_on_cuda(config: Config, is_sweep: bool) -> bool:
    from laptime.runner.rank_plan import accelerator_of

    return accelerator_of(config) == "cuda"


_RULES = (
    _Rule(
        ("sweep.", "hydra/launcher", "hydra.launcher.", "hydra/sweeper", "hydra.sweeper.", "hydra.sweep."),
        lambda config, is_sweep: is_sweep,
        "is for sweeps. Add -m, or leave it out.",
    ),
    _Rule(
        ("optimized_metric",),
        lambda config, is_sweep: is_sweep,
        "is what a sweep is searched or compared by. Add -m, or leave it out.",
    ),
    _Rule(
        ("hydra.verbose", "hydra/job_logging", "hydra/hydra_logging", "hydra.job_logging.", "hydra.hydra_logging."),
        lambda config, is_sweep: False,
        "has no effect: Laptime sets up logging itself, for every rank. Leave it out.",
    ),
    _Rule(
        ("dataset.verify",),
        lambda config, is_sweep: config.dataset.get("_target_") != "laptime.data.synthetic.Synthetic",
        "has no effect: dataset=synthetic makes its images and reads no files. Leave it out.",
    ),
    _Rule(
        ("callbacks.checkpoint.save_best",),
        lambda config, is_sweep: bool(config.dataset.get("val_fraction", 1)),
        "needs a validation loss, and dataset.val_fraction=0 leaves none. Leave it out.",
    ),
    _Rule(
        ("hydra.run.dir",),
        lambda config, is_sweep: not is_sweep,
        "is for a single run. The directory of a sweep is hydra.sweep.dir.",
    ),
    _Rule(
        ("measure.max_repeats",),
        lambda config, is_sweep: is_sweep and config.measure.target_interval is not None,
        "bounds the repeats that measure.target_interval asks for in a sweep (-m). Set that too, or leave it out.",
    ),
    _Rule(
        tuple(f"strategy.{key}" for key in (*DDP_KEYS, "master_addr", "master_port") if key != "wrap_single_rank"),
        _has_ranks_that_meet,
        "has no effect on one rank without DDP. Use strategy.world_size=2, or strategy.wrap_single_rank=true.",
    ),
    _Rule(
        ("training.cudnn_benchmark",),
        _trains_on_cuda,
        "has no effect without a CUDA device. Leave it out.",
    ),
    _Rule(
        ("device.fallback",),
        lambda config, is_sweep: config.device.name != "auto",
        "has no effect on device=auto, which takes what there is. Use device=accelerator, mps, cuda or xpu.",
    ),
    _Rule(
        ("dataset.num_workers",),
        lambda config, is_sweep: config.dataset.get("pipeline") not in ("memory", "mapped"),
        "only dataset.pipeline=workers has data workers. Set that too, or leave it out.",
    ),
    _Rule(
        ("measure.memory_warning",),
        lambda config, is_sweep: config.measure.sample_interval_s is not None,
        "needs measure.sample_interval_s, which is null. Give it seconds, or leave it out.",
    ),
)  # fmt: skip


def check(
    hydra: Hydra,
    typed: Sequence[str],
    runs: Sequence[tuple[DictConfig, Config]],
    is_sweep: bool,
    config_name: str | None = None,
) -> None:
    """Refuse overrides that change none of the runs.

    One that says what holds anyway passes.

    Args:
        typed: the overrides of the command line.
        runs: of each run what was composed, Hydra's own part included, and its configuration.
        is_sweep: whether they are those of a sweep.

    Raises:
        UserError: names the override and what it needs.
    """
    for override in map(parse, typed):
        key = override.key
        rule = next((rule for rule in _RULES if rule.covers(key)), None)
        if rule is None or override.is_deletion:
            continue
        if any(rule.matters(config, is_sweep) for _, config in runs):
            continue
        own = list(runs[0][0].hydra.overrides.task) + list(runs[0][0].hydra.overrides.hydra)
        without = compose(hydra, [each for each in own if key_of(each) != key], config_name)
        if any(_value(composed, key) != _value(without, key) for composed, _ in runs):
            raise UserError(f"{override.text}: {rule.needs}")


def _value(composed: DictConfig, key: str) -> Any:
    """What a key or group holds, as it stands there: an interpolation may lead nowhere yet."""
    try:
        parent, _, name = key.replace("/", ".").rpartition(".")
        node = OmegaConf.select(composed, parent)._get_node(name)
    except (OmegaConfBaseException, AttributeError):
        return None
    if OmegaConf.is_config(node):
        return OmegaConf.to_container(node, resolve=False)
    return node._value() if isinstance(node, Node) else node
