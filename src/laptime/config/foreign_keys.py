"""Keys that users of Lightning, lightning-hydra-template or PyTorch scripts type, and what Laptime calls them.

The tables are data; laptime.config.foreign_answers makes messages of them. They answer only for keys and options that
the configuration does not have, so a key of the user's own is never caught.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class ForeignKey:
    """A key of another tool.

    Attributes:
        names: separated by spaces. `model.net.*` covers every key below `model.net`.
        key: Laptime's, with a * for what the * of the name covers; "": Laptime has none, and the note says why.
        note: sentences: where the meaning differs, or what to do instead.
        values: Laptime's value by the other tool's; a text with = is one or several overrides, "": leave the key out.
        is_copied: values that are not in `values` mean the same in Laptime.
        needs: an override that must be typed before the key.
        sweep_key: the key that replaces `key` in a sweep.
        is_count: a list means the number of its items.
    """

    names: str
    key: str = ""
    note: str = ""
    values: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    is_copied: bool = True
    needs: str = ""
    sweep_key: str = ""
    is_count: bool = False

    def covers(self, key: str) -> str | None:
        """What the * of a name covers in a key, "" where the name has no *; None: no name covers the key."""
        for name in self.names.split():
            if name == key:
                return ""
            if name.endswith(".*") and key.startswith(name[:-1]):
                return key.removeprefix(name[:-1])
        return None


_DEVICES = {"gpu": "cuda", "cuda": "cuda", "cpu": "cpu", "mps": "mps", "auto": "auto"}
_PRECISIONS = {
    "32": "32-true", "32-true": "32-true", "fp32": "32-true", "no": "32-true", "16": "16-mixed", "16-mixed": "16-mixed",
    "fp16": "16-mixed", "bf16": "bf16-mixed", "bf16-mixed": "bf16-mixed",
}  # fmt: skip
_OFF = {"false": "32-true", "0": "32-true"}
_TRAINERS = {
    "default": "", "cpu": "device=cpu", "gpu": "device=cuda", "mps": "device=mps",
    "ddp": "device=cuda strategy.world_size=auto", "ddp_sim": "device=cpu strategy.world_size=2",
}  # fmt: skip
_NO_TRAINER = (
    "Laptime builds the Trainer itself. Its settings are in the groups training, strategy, device and callbacks."
)
_QUICK = "experiment=quick trains for a few seconds."
_VALIDATION = "Laptime validates after every epoch, outside the timed part. dataset.val_fraction=0 turns it off."

# A key is answered by the first row that names it, else by the first whose * covers it.
FOREIGN_KEYS = (
    # Lightning's Trainer, and what plain scripts call the same things
    ForeignKey("trainer.max_epochs max_epochs epochs num_epochs n_epochs num_train_epochs", "training.epochs"),
    ForeignKey("trainer.accelerator accelerator", "device", values=_DEVICES),
    ForeignKey(
        "trainer.devices devices gpus num_gpus world_size nproc_per_node num_processes",
        "strategy.world_size",
        values={"-1": "auto", "0": "device=cpu"},
        is_count=True,
    ),
    ForeignKey("trainer.num_nodes num_nodes nnodes", note="Laptime has no key for it. Use torchrun's option --nnodes."),
    ForeignKey(
        "trainer.strategy",
        "strategy",
        "Laptime has ddp, and single for one plain process.",
        {"auto": "", "ddp": "ddp", "ddp_spawn": "ddp"},
    ),
    ForeignKey("trainer.precision precision", "training.precision", values=_PRECISIONS),
    ForeignKey(
        "fp16 amp use_amp mixed_precision",
        "training.precision",
        values={**_PRECISIONS, **_OFF, "true": "16-mixed", "1": "16-mixed"},
    ),
    ForeignKey("bf16", "training.precision", values={**_OFF, "true": "bf16-mixed", "1": "bf16-mixed"}),
    ForeignKey(
        "trainer.gradient_clip_val gradient_clip_val max_grad_norm clip_grad_norm clip_grad grad_clip",
        "training.gradient_clip_norm",
    ),
    ForeignKey("trainer.gradient_clip_algorithm", note="Laptime clips by norm only: training.gradient_clip_norm."),
    ForeignKey(
        "trainer.accumulate_grad_batches accumulate_grad_batches gradient_accumulation_steps grad_accum_steps",
        "training.num_microbatches",
        "It splits the batch of a step and does not multiply it, so multiply training.batch_size, too.",
    ),
    ForeignKey(
        "trainer.limit_train_batches limit_train_batches",
        "dataset.limit",
        "It counts images, not batches.",
        is_copied=False,
    ),
    ForeignKey(
        "trainer.fast_dev_run trainer.overfit_batches fast_dev_run debug",
        note=_QUICK,
        values={"true": "experiment=quick", "1": "experiment=quick", "default": "experiment=quick", "false": ""},
    ),
    ForeignKey("trainer.max_steps max_steps total_steps num_steps max_iters", "training.max_steps", values={"-1": ""}),
    ForeignKey(
        "trainer.min_steps trainer.min_epochs",
        note="Laptime has no such key. training.epochs or training.max_steps sets the length of the training.",
    ),
    ForeignKey("trainer.max_time max_time", "training.time_limit_s", "It takes seconds.", is_copied=False),
    ForeignKey(
        "trainer.check_val_every_n_epoch trainer.val_check_interval trainer.limit_val_batches"
        " trainer.num_sanity_val_steps check_val_every_n_epoch",
        note=_VALIDATION,
    ),
    ForeignKey(
        "trainer.deterministic deterministic",
        note="Laptime has no key for deterministic algorithms. seed fixes the random numbers.",
    ),
    ForeignKey("trainer.benchmark benchmark cudnn_benchmark", "training.cudnn_benchmark"),
    ForeignKey("trainer.logger", "logger", values={"false": "none", "true": "tensorboard"}),
    ForeignKey("trainer.callbacks", note="Add one by name: +callbacks.NAME._target_=package.module.Class."),
    ForeignKey(
        "trainer.enable_checkpointing", "callbacks.checkpoint", values={"false": "null", "true": ""}, is_copied=False
    ),
    ForeignKey(
        "trainer.enable_progress_bar", "callbacks.progress_bar", values={"false": "null", "true": ""}, is_copied=False
    ),
    ForeignKey("trainer.profiler", "profiler"),
    ForeignKey("trainer", note=_NO_TRAINER, values=_TRAINERS),
    # Groups of lightning-hydra-template
    ForeignKey("data datamodule", "dataset"),
    ForeignKey(
        "data.batch_size datamodule.batch_size batch_size train_batch_size per_device_train_batch_size",
        "training.batch_size",
    ),
    ForeignKey("eval_batch_size val_batch_size test_batch_size per_device_eval_batch_size", "training.eval_batch_size"),
    ForeignKey(
        "data.num_workers datamodule.num_workers num_workers workers dataloader_num_workers",
        "dataset.num_workers",
        "It only works with dataset.pipeline=workers.",
    ),
    ForeignKey(
        "data.data_dir datamodule.data_dir paths.data_dir data_dir data_path data_root dataset.data_dir", "dataset.root"
    ),
    ForeignKey("data.train_val_test_split val_split", "dataset.val_fraction", is_copied=False),
    ForeignKey("data.pin_memory pin_memory", note="Laptime has no key for it. Leave it out."),
    ForeignKey("data.* datamodule.*", "dataset.*"),
    ForeignKey("model.optimizer optim", "optimizer"),
    ForeignKey("model.optimizer.* optim.*", "optimizer.*"),
    ForeignKey("optimizer.name optimizer.type optim.name optim.type optimizer_name", "optimizer"),
    ForeignKey(
        "model.scheduler lr_scheduler scheduler.name scheduler.type lr_scheduler.name lr_scheduler.type scheduler_name"
        " lr_scheduler_type",
        "scheduler",
    ),
    ForeignKey("model.name model.type model_name", "model"),
    ForeignKey("dataset.name dataset.type data.name data.type dataset_name", "dataset"),
    ForeignKey("model.scheduler.* lr_scheduler.*", "scheduler.*"),
    ForeignKey("model.net net arch architecture network backbone", "model"),
    ForeignKey("model.net.* net.*", "model.*"),
    ForeignKey("model.compile torch_compile", "training.compile"),
    ForeignKey("hparams_search", "search", is_copied=False),
    ForeignKey(
        "ckpt_path resume resume_from resume_from_checkpoint",
        "training.checkpoint",
        values={"true": "latest", "last": "latest", "false": ""},
    ),
    ForeignKey(
        "paths.output_dir paths.log_dir trainer.default_root_dir output_dir log_dir save_dir",
        "hydra.run.dir",
        "hydra.run.dir is the directory of one run, hydra.sweep.dir that of a sweep.",
        sweep_key="hydra.sweep.dir",
    ),
    ForeignKey("paths paths.* extras extras.* task_name tags", note="Laptime has no such key. Leave it out."),
    ForeignKey("multirun", note="A sweep is a flag: add -m.", values={"false": ""}),
    ForeignKey(
        "fit train test evaluate eval",
        note="Every run trains, then tests. Leave it out. To only test a trained model, use laptime evaluate.",
    ),
    # Plain PyTorch scripts and LightningCLI
    ForeignKey("lr learning_rate base_lr", "optimizer.lr"),
    ForeignKey("weight_decay wd", "optimizer.weight_decay"),
    ForeignKey("momentum", "optimizer.momentum", "It needs optimizer=sgd.", needs="optimizer=sgd"),
    ForeignKey(
        "warmup_steps num_warmup_steps",
        "scheduler.warmup_fraction",
        "It is a fraction of all steps.",
        is_copied=False,
        needs="scheduler=cosine_warmup",
    ),
    ForeignKey("warmup_ratio", "scheduler.warmup_fraction", needs="scheduler=cosine_warmup"),
    ForeignKey("opt", "optimizer"),
    ForeignKey("patience", "training.early_stopping_patience"),
    ForeignKey("seed_everything random_seed manual_seed", "seed"),
    ForeignKey("dist_backend", "strategy.backend"),
    ForeignKey("trainer.*", note=_NO_TRAINER),
    # evaluate and export, whose keys are fewer
    ForeignKey("ckpt_path ckpt weights resume", "checkpoint"),
    ForeignKey("trainer.precision", "precision", values=_PRECISIONS),
    ForeignKey("model.compile torch_compile", "compile"),
)
# Other tools' names of the options of a group. Names that differ in upper case, - and _ alone need no row.
FOREIGN_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "device": {"gpu": "cuda", "cuda:0": "cuda", "metal": "mps"},
    "dataset": {"cifar": "cifar10", "fmnist": "fashion_mnist"},
    "model": {"resnet": "resnet18", "efficientnet": "efficientnet_b0", "linear": "logistic_regression"},
    "optimizer": {"momentum": "sgd"},
    "scheduler": {
        "steplr": "step", "cosineannealinglr": "cosine", "cosineannealing": "cosine", "onecyclelr": "one_cycle",
        "reducelronplateau": "plateau", "constant": "none",
    },
    "strategy": {"ddpspawn": "ddp", "distributed": "ddp", "singledevice": "single"},
    "logger": {
        "tb": "tensorboard", "tensorboardlogger": "tensorboard", "csvlogger": "csv", "wandblogger": "wandb",
        "mlflowlogger": "mlflow",
    },
    "profiler": {"simpleprofiler": "simple", "advancedprofiler": "advanced", "pytorchprofiler": "pytorch"},
}  # fmt: skip


def table() -> str:
    """The keys as a table in Markdown, for the documents."""
    lines = ["| elsewhere | Laptime | |", "|---|---|---|"]
    for row in FOREIGN_KEYS:
        names = ", ".join(f"`{name}`" for name in row.names.split())
        values = ", ".join(f"`{foreign}`: {_shown(value)}" for foreign, value in row.values.items() if foreign != value)
        lines.append(
            f"| {names} | {f'`{row.key}`' if row.key else ''} | {' '.join(filter(None, (row.note, values)))} |"
        )
    return "\n".join(lines)


def _shown(value: str) -> str:
    return f"`{value}`" if value else "the default"
