"""Refuses command-line overrides that have no effect. Files may hold such keys, for runs in which they matter."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.hydra import Hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.base import Node
from omegaconf.errors import OmegaConfBaseException

from laptime.config.compose import compose
from laptime.config.overrides import key_of, parse
from laptime.config.own_task import UNUSED_KEYS
from laptime.config.schema import OWN, Config
from laptime.errors import UserError
from laptime.ranks import torchrun
from laptime.record.files import DDP_KEYS


@dataclass(frozen=True)
class _Rule:
    """A rule for when keys have an effect.

    Attributes:
        keys: full names of the keys. A name that ends with a dot means all keys below it.
        has_effect: whether the keys change anything, given a run's configuration and whether it is in a sweep.
        reason: the end of the message: why they have no effect otherwise, and what to do.
        refuses_default: whether an override is refused even if it repeats the default.
    """

    keys: tuple[str, ...]
    has_effect: Callable[[Config, bool], bool]
    reason: str
    refuses_default: bool = False

    def covers(self, key: str) -> bool:
        return any(key == name or (name.endswith(".") and f"{key}.".startswith(name)) for name in self.keys)


def _has_process_group(config: Config, is_sweep: bool) -> bool:
    if torchrun.is_joined():
        world_size = torchrun.world_size()
    elif isinstance(config.strategy.world_size, int):
        world_size = config.strategy.world_size
    else:
        from laptime.runner.rank_plan import num_ranks  # loads torch

        world_size = num_ranks(config)
    return world_size > 1 or bool(config.strategy.wrap_single_rank)


def _trains_on_cuda(config: Config, is_sweep: bool) -> bool:
    if config.device.name not in ("auto", "accelerator", "cuda"):
        return False
    from laptime.runner.rank_plan import accelerator_of  # loads torch

    return accelerator_of(config) == "cuda"


_RULES = (
    _Rule(
        ("sweep.", "hydra/launcher", "hydra.launcher.", "hydra/sweeper", "hydra.sweeper.", "hydra.sweep."),
        lambda config, is_sweep: is_sweep,
        "only works in sweeps. Add -m, or leave it out.",
    ),
    _Rule(
        ("optimized_metric",),
        lambda config, is_sweep: is_sweep,
        "only works in sweeps, which optimize or compare it. Add -m, or leave it out.",
    ),
    _Rule(
        ("hydra.verbose", "hydra/job_logging", "hydra/hydra_logging", "hydra.job_logging.", "hydra.hydra_logging."),
        lambda config, is_sweep: False,
        "has no effect, because Laptime sets up logging itself, for every rank. Leave it out.",
    ),
    _Rule(
        ("dataset.verify",),
        lambda config, is_sweep: config.dataset.get("_target_") != "laptime.data.synthetic.Synthetic",
        "has no effect with dataset=synthetic, which reads no files. Leave it out.",
    ),
    _Rule(
        ("callbacks.checkpoint.save_best",),
        lambda config, is_sweep: bool(config.dataset.get("val_fraction", 1)),
        "needs a validation loss, but dataset.val_fraction=0 leaves no validation set. Leave it out.",
    ),
    _Rule(
        ("hydra.run.dir",),
        lambda config, is_sweep: not is_sweep,
        "only works for a single run. For a sweep, use hydra.sweep.dir.",
    ),
    _Rule(
        ("measure.max_repeats",),
        lambda config, is_sweep: is_sweep and config.measure.target_interval is not None,
        "only works with measure.target_interval in a sweep (-m). Set that, too, or leave it out.",
    ),
    _Rule(
        tuple(f"strategy.{key}" for key in (*DDP_KEYS, "master_addr", "master_port") if key != "wrap_single_rank"),
        _has_process_group,
        "has no effect on one rank without DDP. Use strategy.world_size=2 or strategy.wrap_single_rank=true.",
    ),
    _Rule(
        ("training.epochs",),
        lambda config, is_sweep: config.training.max_steps is None,
        "has no effect with training.max_steps, which sets the length of the training in steps. Leave one of them out, "
        "or set training.max_steps=null.",
        refuses_default=True,
    ),
    _Rule(
        ("training.cudnn_benchmark",),
        _trains_on_cuda,
        "has no effect without a CUDA device. Leave it out.",
    ),
    _Rule(
        ("device.fallback",),
        lambda config, is_sweep: config.device.name != "auto",
        "has no effect on device=auto, which uses what is available. Use device=accelerator, mps, cuda or xpu.",
    ),
    _Rule(
        ("dataset.num_workers",),
        lambda config, is_sweep: config.dataset.get("pipeline") not in ("memory", "mapped"),
        "only works with dataset.pipeline=workers. Set that, too, or leave it out.",
    ),
    _Rule(
        ("measure.memory_warning",),
        lambda config, is_sweep: config.measure.sample_interval_s is not None,
        "needs measure.sample_interval_s, which is null. Set that in seconds, or leave it out.",
    ),
    _Rule(
        ("task.module.", "task.data.", "task.score."),
        lambda config, is_sweep: config.task.name == OWN,
        "only works with task=own. Set that, too, or leave it out.",
    ),
    *(
        _Rule((key,), lambda config, is_sweep: config.task.name != OWN, f"has no effect with task=own. {remedy}")
        for key, remedy in UNUSED_KEYS.items()
    ),
)  # fmt: skip


def check(
    hydra: Hydra,
    cli_overrides: Sequence[str],
    composed: Sequence[Callable[[], DictConfig]],
    configs: Sequence[Config],
    is_sweep: bool,
    config_name: str | None = None,
) -> None:
    """Refuse overrides that have no effect on any run. An override that repeats the default passes most rules.

    Args:
        cli_overrides: the overrides of the command line.
        composed: a function for each run that returns its composed configuration, with the node `hydra`.
        configs: the Config of each run.
        is_sweep: whether the runs belong to a sweep.

    Raises:
        UserError: an override has no effect; names it and what it needs.
    """
    for override in map(parse, cli_overrides):
        key = override.key
        rules = [rule for rule in _RULES if rule.covers(key)]
        rule = next((rule for rule in rules if not any(rule.has_effect(c, is_sweep) for c in configs)), None)
        if rule is None or override.is_deletion:
            continue
        if rule.refuses_default:
            raise UserError(f"{override.text}: {rule.reason}")
        of_first = composed[0]().hydra.overrides
        run_overrides = [*of_first.task, *of_first.hydra]
        without = compose(hydra, [text for text in run_overrides if key_of(text) != key], config_name)
        if any(_value(make(), key) != _value(without, key) for make in composed):
            raise UserError(f"{override.text}: {rule.reason}")


def _value(composed: DictConfig, key: str) -> Any:
    """Return the unresolved value of a key or group, because an interpolation may not be resolvable yet."""
    try:
        parent, _, name = key.replace("/", ".").rpartition(".")
        node = OmegaConf.select(composed, parent)._get_node(name)
    except (OmegaConfBaseException, AttributeError):
        return None
    if OmegaConf.is_config(node):
        return OmegaConf.to_container(node, resolve=False)
    return node._value() if isinstance(node, Node) else node
