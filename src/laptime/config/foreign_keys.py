"""Keys that users of Lightning, lightning-hydra-template or PyTorch scripts type, and what Laptime calls them.

The table is data. It answers only for keys that the configuration does not have, so a key of the user's own is never
caught.
"""

import shlex
from collections.abc import Container, Iterable, Mapping
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
    """

    names: str
    key: str = ""
    note: str = ""
    values: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    is_copied: bool = True

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
    ForeignKey("trainer.accelerator accelerator", "device", values=_DEVICES, is_copied=False),
    ForeignKey(
        "trainer.devices devices gpus num_gpus world_size nproc_per_node num_processes",
        "strategy.world_size",
        values={"-1": "auto"},
    ),
    ForeignKey("trainer.num_nodes num_nodes nnodes", note="Laptime has no key for it. Use torchrun --nnodes=N."),
    ForeignKey(
        "trainer.strategy",
        "strategy",
        "Laptime has ddp, and single for one plain process.",
        {"auto": "", "ddp": "ddp", "ddp_spawn": "ddp"},
        is_copied=False,
    ),
    ForeignKey("trainer.precision precision", "training.precision", values=_PRECISIONS, is_copied=False),
    ForeignKey(
        "fp16 amp use_amp mixed_precision",
        "training.precision",
        values={**_PRECISIONS, "true": "16-mixed", "false": "32-true"},
        is_copied=False,
    ),
    ForeignKey("bf16", "training.precision", values={"true": "bf16-mixed", "false": "32-true"}, is_copied=False),
    ForeignKey(
        "trainer.gradient_clip_val gradient_clip_val max_grad_norm clip_grad_norm clip_grad grad_clip",
        "training.gradient_clip_norm",
    ),
    ForeignKey("trainer.gradient_clip_algorithm", note="Laptime clips by norm only: training.gradient_clip_norm."),
    ForeignKey(
        "trainer.accumulate_grad_batches accumulate_grad_batches gradient_accumulation_steps grad_accum_steps",
        "training.num_microbatches",
        "It splits the batch of a step; yours makes the batch larger, so multiply training.batch_size, too.",
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
    ForeignKey(
        "trainer.max_steps trainer.min_steps trainer.min_epochs max_steps total_steps num_steps",
        note="Laptime counts epochs, and has no such key yet. Use training.epochs.",
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
    ForeignKey("trainer.logger", "logger", values={"false": "none", "true": "tensorboard"}, is_copied=False),
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
        "It has an effect with dataset.pipeline=workers.",
    ),
    ForeignKey(
        "data.data_dir datamodule.data_dir paths.data_dir data_dir data_path data_root dataset.data_dir", "dataset.root"
    ),
    ForeignKey("data.train_val_test_split val_split", "dataset.val_fraction", is_copied=False),
    ForeignKey("data.pin_memory pin_memory", note="Laptime decides it. Leave it out."),
    ForeignKey("data.* datamodule.*", "dataset.*"),
    ForeignKey("model.optimizer optim", "optimizer"),
    ForeignKey("model.optimizer.* optim.*", "optimizer.*"),
    ForeignKey("model.scheduler lr_scheduler", "scheduler"),
    ForeignKey("model.scheduler.* lr_scheduler.*", "scheduler.*"),
    ForeignKey("model.net net arch architecture network backbone", "model"),
    ForeignKey("model.net.* net.*", "model.*"),
    ForeignKey("model.compile torch_compile", "training.compile"),
    ForeignKey("hparams_search", "search", is_copied=False),
    ForeignKey("ckpt_path resume resume_from resume_from_checkpoint", "training.checkpoint"),
    ForeignKey(
        "paths.output_dir paths.log_dir trainer.default_root_dir output_dir log_dir save_dir",
        "hydra.run.dir",
        "It is the directory of one run; hydra.sweep.dir is that of a sweep.",
    ),
    ForeignKey("paths paths.* extras extras.* task_name tags", note="Laptime has no such key. Leave it out."),
    ForeignKey("fit train test", note="Laptime trains and tests in one run. Leave it out."),
    ForeignKey("multirun", note="A sweep is a flag: add -m.", values={"false": ""}),
    # Plain PyTorch scripts and LightningCLI
    ForeignKey("lr learning_rate base_lr", "optimizer.lr"),
    ForeignKey("weight_decay wd", "optimizer.weight_decay"),
    ForeignKey("momentum", "optimizer.momentum", "It needs optimizer=sgd."),
    ForeignKey("opt", "optimizer"),
    ForeignKey("patience", "training.early_stopping_patience"),
    ForeignKey("seed_everything random_seed manual_seed", "seed"),
    ForeignKey("dist_backend", "strategy.backend"),
    ForeignKey("trainer.*", note=_NO_TRAINER),
    # evaluate and export, whose keys are fewer
    ForeignKey("ckpt_path ckpt weights resume", "checkpoint"),
    ForeignKey("trainer.precision", "precision", values=_PRECISIONS, is_copied=False),
    ForeignKey("model.compile torch_compile", "compile"),
)
# Groups whose keys may have any meaning: `scheduler.patience` is not the patience of early stopping.
_OPEN_MEANING = ("scheduler", "callbacks", "logger", "profiler", "hydra")


def answer(text: str, key: str, value: str | None, roots: Container[str], verb: str = "Type") -> str | None:
    """A line about a key that the configuration does not have: what Laptime calls it. None: the table lacks it.

    Args:
        text: what was typed, or the key and the value of a file.
        key: full, without a prefix: `trainer.max_epochs`.
        value: as typed; None: there is none.
        roots: what is at the root of the configuration. Rows about other keys are passed over.
        verb: before the override that replaces the key; "": nothing replaces it, because it is deleted.
    """
    rows = [row for row in FOREIGN_KEYS if _applies(row, key, roots)]
    parent, _, name = key.rpartition(".")
    is_group = parent not in _OPEN_MEANING and (
        parent in roots or any(row.covers(parent) == "" for row in FOREIGN_KEYS)
    )
    by_name = [row for row in rows if row.key] if is_group else []
    for row, covered in (
        *_covering(rows, key, exact=True),
        *((row, covered) for row, covered in _covering(rows, key, exact=False) if row.key),
        *_covering(by_name, name, exact=True),  # `training.lr` is answered as `lr` is
        *_covering(rows, key, exact=False),
    ):
        return f"{text}: {_answer(row, row.key.replace('*', covered), value, verb)}"
    return None


def _applies(row: ForeignKey, key: str, roots: Container[str]) -> bool:
    root = row.key.partition(".")[0]
    return row.key != key and ("training" in roots if root in ("", "hydra", "search") else root in roots)


def _covering(rows: Iterable[ForeignKey], key: str, exact: bool) -> list[tuple[ForeignKey, str]]:
    covered = [(row, row.covers(key)) for row in rows]
    return [(row, rest) for row, rest in covered if rest is not None and (rest == "") == exact]


def _answer(row: ForeignKey, key: str, value: str | None, verb: str) -> str:
    sentences = [f"Laptime calls it {key}." if key else "", row.note]
    meaning = row.values.get("" if value is None else value.strip("'\" ").lower())
    if not verb:
        sentences.append("There is nothing to delete: leave it out.")
    elif meaning == "":
        sentences.append("That is the default: leave it out.")
    elif meaning is not None and "=" in meaning:
        sentences.append(f"{verb} {meaning}.")
    elif meaning is None and key and (value is None or not row.is_copied):
        sentences.append(f"{verb} {key}=...")
    elif key:
        sentences.append(f"{verb} {shlex.quote(f'{key}={value if meaning is None else meaning}')}.")
    return " ".join(sentence for sentence in sentences if sentence)


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
