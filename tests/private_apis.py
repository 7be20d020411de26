"""The private names of other packages that Laptime uses. Any release of a package may change them.

`tests/test_private_apis.py` compares this list with the source and with the installed packages. The nightly job in
.github/workflows/nightly.yml does the same with the newest releases, so that a change is seen before users see it.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class PrivateName:
    """One private name.

    Attributes:
        name: as the source spells it.
        module: the public or private module whose code has it.
        reason: what it is used for, and why no public name does that.
    """

    name: str
    module: str
    reason: str


_HYDRA = "Hydra has no public way to compose, check and run jobs without its own command line"
_FOREACH = "one call for all parameters; the public names work on one tensor at a time"

PRIVATE_NAMES = (
    # PyTorch
    PrivateName("_C", "torch", "the parent of two names below"),
    PrivateName("_current_graph_task_id", "torch._C", "tells a recomputed forward pass from a real one"),
    PrivateName("_get_mkldnn_enabled", "torch._C", "reads a setting that has no public getter"),
    PrivateName("_dynamo", "torch", "resets compiled code between two evaluations; torch.compiler.reset does less"),
    PrivateName("_foreach_add_", "torch", _FOREACH),
    PrivateName("_foreach_copy_", "torch", _FOREACH),
    PrivateName("_foreach_lerp_", "torch", _FOREACH),
    PrivateName("_foreach_mul_", "torch", _FOREACH),
    PrivateName("_python_dispatch", "torch.utils", "TorchDispatchMode: sees each operation that is computed"),
    PrivateName("_overloadpacket", "torch._ops", "the operation of an overload, by which FLOP formulas are listed"),
    PrivateName("_compiled_call_impl", "torch.nn.modules.module", "tells whether a module was compiled in place"),
    PrivateName("_comm_hooks", "torch.nn.parallel.distributed", "tells whether the user registered a hook"),
    PrivateName("_get_ddp_logging_data", "torch.nn.parallel.distributed", "DDP's own clocks of a step"),
    PrivateName("_set_ddp_runtime_logging_sample_rate", "torch.nn.parallel.distributed", "DDP's clocks in every step"),
    PrivateName("_get_default_store", "torch.distributed.distributed_c10d", "the store of a process group"),
    PrivateName("_share_fd_cpu_", "torch.storage", "shared memory by file descriptor, for every storage"),
    PrivateName("_iterator", "torch.utils.data.dataloader", "ends persistent workers when a run ends"),
    PrivateName("_shutdown_workers", "torch.utils.data.dataloader", "ends persistent workers when a run ends"),
    PrivateName("_opt_called", "torch.optim.lr_scheduler", "schedulers warn where the step is not the optimizer's"),
    PrivateName("_get_file_writer", "torch.utils.tensorboard.writer", "adds HPARAMS without a second event file"),
    PrivateName("_schedulers", "torch.optim.lr_scheduler", "the parts of a SequentialLR or ChainedScheduler"),
    # Lightning
    PrivateName("_call_callback_hooks", "pytorch_lightning.trainer.call", "calls hooks of several steps in one batch"),
    PrivateName("_combined_loader", "pytorch_lightning.loops.fit_loop", "the loaders that the Trainer really uses"),
    PrivateName("_skip_backward", "pytorch_lightning.loops.fit_loop", "tells that a training has no steps"),
    PrivateName("_signal_connector", "pytorch_lightning.trainer.trainer", "its handler of SIGTERM deadlocks ranks"),
    PrivateName("_ddp_kwargs", "pytorch_lightning.strategies.ddp", "the settings of DDP, for the record"),
    PrivateName("_layer_sync", "pytorch_lightning.strategies.parallel", "SyncBatchNorm, for the record"),
    PrivateName("_kwargs", "lightning_fabric.loggers.tensorboard", "purge_step of SummaryWriter, after it was built"),
    # Hydra and OmegaConf
    PrivateName("_internal", "hydra", _HYDRA),
    PrivateName("_locate", "hydra._internal.utils", "finds a target as instantiate does"),
    PrivateName(
        "_get_value_element_as_str", "hydra.core.override_parser.types", "a swept value as Hydra would type it"
    ),
    PrivateName("_get_node", "omegaconf.basecontainer", "a node with its type and flags, not its value"),
    PrivateName("_query", "hydra.plugins.completion_plugin", "completions of overrides, without printing them"),
    PrivateName("_is_none", "omegaconf.base", "tells null from a mapping without an error"),
    PrivateName("_is_missing", "omegaconf.base", "tells ??? from a value without an error"),
    # Others
    PrivateName("_instances", "tqdm.std", "tells whether a progress bar is on the terminal"),
    PrivateName("_wraparound_tracker", "zeus.device.cpu.rapl", "a process per counter that is not needed here"),
    # Python
    PrivateName("_option_string_actions", "argparse", "tells options from overrides that begin with a dash"),
    PrivateName("_forkserver", "multiprocessing.forkserver", "the process id of the fork server"),
    PrivateName("_forkserver_pid", "multiprocessing.forkserver", "the process id of the fork server"),
    PrivateName("_exit", "os", "documented: ends a process without Python's own shutdown"),
    PrivateName("_getframe", "sys", "documented: the caller's frame"),
)
