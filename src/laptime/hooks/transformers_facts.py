"""Reads the facts about the training of a transformers.Trainer before it starts."""

import sys
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from laptime.hooks.identity import HydraJob, plain
from laptime.hooks.settings import Settings, Training, config_of, length_of

# TrainingArguments that can change the result or its timing. Names that the installed version lacks are ignored.
_SETTINGS = (
    "adam_beta1", "adam_beta2", "adam_epsilon", "auto_find_batch_size", "average_tokens_across_devices", "bf16",
    "dataloader_drop_last", "dataloader_num_workers", "dataloader_persistent_workers", "dataloader_pin_memory",
    "dataloader_prefetch_factor", "fp16", "gradient_accumulation_steps", "gradient_checkpointing", "group_by_length",
    "label_smoothing_factor", "learning_rate", "lr_scheduler_kwargs", "lr_scheduler_type", "max_grad_norm", "max_steps",
    "neftune_noise_alpha", "num_train_epochs", "optim", "optim_args", "per_device_train_batch_size", "tf32",
    "torch_compile", "torch_compile_backend", "torch_compile_mode", "train_sampling_strategy", "use_liger_kernel",
    "warmup_ratio", "warmup_steps", "weight_decay",
)  # fmt: skip
# Keys of a model's configuration that are only names and paths.
_IGNORED_MODEL_KEYS = ("_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype")


def trainer_of(state: Any) -> Any:
    """Return the Trainer that is calling. It is looked up in the call stack, because callbacks don't get it.

    Args:
        state: the state of the training, which identifies its Trainer.

    Returns:
        The Trainer; None: the caller is no transformers.Trainer.
    """
    trainer_class = getattr(sys.modules.get("transformers.trainer"), "Trainer", None)
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and trainer_class is not None:
        if frame.f_code.co_varnames[:1] == ("self",):
            caller = frame.f_locals.get("self")
            if isinstance(caller, trainer_class) and getattr(caller, "state", None) is state:
                return caller
        frame = frame.f_back
    return None


def has_length(loader: Any) -> bool:
    """Whether the Trainer knows the number of batches of an epoch."""
    return bool(length_of(loader))


def batch_size_of(args: Any, state: Any) -> int:
    """Return the samples of a micro-batch on one device, which `auto_find_batch_size` may have made smaller."""
    reduced = state.train_batch_size if args.auto_find_batch_size else None
    return int(reduced // max(1, args.n_gpu) if reduced else args.per_device_train_batch_size)


def recomputes(args: Any, model: torch.nn.Module) -> bool:
    """Whether the backward pass recomputes activations (gradient checkpointing)."""
    is_requested = any(getattr(args, name, None) for name in ("gradient_checkpointing", "activation_checkpointing"))
    fsdp = getattr(args, "fsdp_config", None)
    return (
        is_requested
        or (isinstance(fsdp, dict) and bool(fsdp.get("activation_checkpointing")))
        or any(getattr(module, "gradient_checkpointing", False) is True for module in model.modules())
    )


def training_of(
    args: Any, state: Any, model: torch.nn.Module, loader: Any, settings: Settings, job: HydraJob | None
) -> Training:
    """Return what is known about the training when it starts.

    Args:
        job: the Hydra job that runs the training; None: there is none.
    """
    distributed = dist.is_available() and dist.is_initialized()
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    dtype_names = {torch.bfloat16: "bf16-true", torch.float16: "16-true", torch.float64: "64-true"}
    mixed = "bf16-mixed" if args.bf16 else "16-mixed" if args.fp16 else None
    data: Any = getattr(loader, "dataset", None)
    return Training(
        model=settings.name or type(model).__name__.lower(),
        dataset=settings.dataset or type(data).__name__.lower(),
        num_parameters=num_parameters,
        num_train=length_of(data),
        precision=mixed or dtype_names.get(getattr(model, "dtype", None), "32-true"),  # type: ignore[arg-type]
        batches_per_step=1,  # a batch is the whole input of an optimizer step
        num_batches=state.max_steps - state.global_step if state.max_steps > 0 else None,
        num_epochs=int(args.num_train_epochs) if args.max_steps <= 0 and args.num_train_epochs % 1 == 0 else None,
        backend=dist.get_backend() if distributed and dist.get_world_size() > 1 else None,
        strategy="ddp" if distributed else "single",
        config=config_of(settings, job, lambda: _detected_config(args, state, model, num_parameters)),
        seed=args.seed if settings.seed is None else settings.seed,
        classes=("__main__.script", f"{type(model).__module__}.Model"),
        has_workers=args.dataloader_num_workers > 0,
    )


def _detected_config(args: Any, state: Any, model: torch.nn.Module, num_parameters: int) -> dict[str, Any]:
    """Return the TrainingArguments that can change the result or its timing, and the model's configuration."""
    values = args.to_dict() | {"per_device_train_batch_size": batch_size_of(args, state)}
    described: dict[str, Any] = getattr(getattr(model, "config", None), "to_diff_dict", dict)()
    return {
        "training": plain({name: values[name] for name in _SETTINGS if name in values}),
        "model": plain({key: value for key, value in described.items() if key not in _IGNORED_MODEL_KEYS})
        | {"num_parameters": num_parameters, "dtype": str(getattr(model, "dtype", None))},
    }
