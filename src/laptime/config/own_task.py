"""The settings that mean nothing with `task=own`, where a LightningModule and a LightningDataModule of a user train."""

from collections.abc import Sequence

from laptime.config.overrides import find_last, parse
from laptime.config.schema import OWN, Config
from laptime.errors import UserError

_MODULE, _DATA = "Set it in the LightningModule: task.module...", "Set it in the LightningDataModule: task.data..."

# The groups and keys that have no effect, and what to use instead.
UNUSED_GROUPS = {"dataset": _DATA, "model": _MODULE, "optimizer": _MODULE, "scheduler": _MODULE}
UNUSED_KEYS = {
    "training.batch_size": "Use task.data.batch_size, or the name that the LightningDataModule has for it.",
    "training.batch_scope": "The LightningDataModule sets the batch size of each rank.",
    "training.eval_batch_size": _DATA,
    "training.num_microbatches": (
        "Accumulate gradients with a callback: "
        "+callbacks.accumulate._target_=pytorch_lightning.callbacks.GradientAccumulationScheduler "
        "+callbacks.accumulate.scheduling={0:4}"
    ),
    "training.steps_per_execution": "Lightning takes every step by itself.",
    "training.label_smoothing": _MODULE,
    "training.mixup_alpha": _MODULE,
    "training.ema_decay": "Use a callback: +callbacks.ema._target_=pytorch_lightning.callbacks.EMAWeightAveraging.",
    "training.swa_start_epoch": (
        "Use a callback: +callbacks.swa._target_=pytorch_lightning.callbacks.StochasticWeightAveraging "
        "+callbacks.swa.swa_lrs=0.01"
    ),
    "strategy.shard_optimizer": "Only Laptime's own optimizer steps can be sharded.",
    "measure.bare_loop": "Laptime can't repeat the LightningModule's steps without Lightning.",
    "measure.target_accuracy": "Use measure.target_score and task.score.",
}


def refuse_typed(overrides: Sequence[str]) -> None:
    """Refuse overrides of groups without effect, before composing: Hydra would call their keys unknown.

    Raises:
        UserError: names the override and what to use.
    """
    task = find_last(overrides, "task")
    if task is None or task.value != OWN:
        return
    for override in map(parse, overrides):
        group = override.key.partition(".")[0]
        if group in UNUSED_GROUPS and override.value_text not in ("none", "null"):
            raise UserError(f"{override.text}: has no effect with task=own. {UNUSED_GROUPS[group]}")


def check(config: Config) -> None:
    """Refuse settings that the task can't follow.

    Raises:
        UserError: names the key, the value and the rule.
    """
    for group, remedy in UNUSED_GROUPS.items():
        if (target := config.open_group(group).get("_target_")) is not None:
            raise UserError(f"{group}._target_={target}: has no effect with task=own. {remedy}")
    if config.training.compile:
        raise UserError(
            "training.compile=true: Laptime can't tell which part of a LightningModule to compile. Compile it there "
            "(self.net = torch.compile(self.net)), and use training.compile=false."
        )
    for key, node in (("task.module", config.task.module), ("task.data", config.task.data)):
        if node.get("_target_") is None:
            raise UserError(f"{key}._target_: has no value. Name your class: {key}._target_=my_file.MyClass")
