"""Translates errors of torch, Lightning and the system into messages that say what to do."""

import errno
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytorch_lightning.utilities.exceptions import MisconfigurationException

from laptime.config import targets
from laptime.config.schema import OWN, Config
from laptime.errors import TrainingFailed, first_line, is_out_of_memory
from laptime.machine.hardware import read_small_file
from laptime.text import MORE_FILES, byte_size, format_os_error
from laptime.training import open_groups

_ALLOCATION = re.compile(r"tried to allocate (\d[\d.]*) ?(bytes|KiB|MiB|GiB)", re.I)
_BYTES = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_NO_GRADIENT = re.compile(r"Expected to have finished reduction")
_ONE_VALUE = re.compile(r"Expected more than 1 value per channel when training")
# A data worker that writes into shared memory that is full is killed with SIGBUS.
_NO_SHARED_MEMORY = re.compile(
    r"shared memory\(shm\).*No space left|/torch_\d+_\d+.*No space left|worker .*killed by signal: Bus error", re.S
)
_WORKER = re.compile(r"DataLoader worker .*(is killed by signal: \w+|exited unexpectedly)")


@contextmanager
def translated_errors(config: Config) -> Iterator[None]:
    """Raise the translation of an error instead of the error, where `translate` knows one.

    Args:
        config: the resolved configuration of the run.
    """
    try:
        yield
    except Exception as error:
        cause = translate(error, config)
        if cause is error:
            raise
        raise cause from error


def translate(error: Exception, config: Config) -> Exception:
    """Return an error that names cause and remedy (e.g. out of memory, a killed data worker), or the error itself.

    Args:
        config: the resolved configuration of the run.
    """
    text = str(error)
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return TrainingFailed(format_os_error(error))
    if isinstance(error, RuntimeError) and "Too many open files" in text:
        return TrainingFailed(f"Too many open files. {MORE_FILES}")
    if (
        isinstance(error, RuntimeError | OSError)
        and _NO_SHARED_MEMORY.search(text)
        and not text.startswith("strategy.")
    ):
        return TrainingFailed(
            "/dev/shm is full: the data workers can't pass on their batches. Enlarge it (docker run --shm-size=2g), or "
            f"use {'num_workers=0' if config.task.name == OWN else 'dataset.num_workers=0'}."
        )
    if isinstance(error, RuntimeError) and (how := _WORKER.search(text)) is not None:
        return _data_worker_died(how[1].replace("is killed", "was killed"), config)
    if isinstance(error, RuntimeError) and _NO_GRADIENT.search(text):
        return TrainingFailed(
            "some weights of the model get no gradient, and DDP waits for it. Use strategy.static_graph=true if these "
            "are the same weights in every step, strategy.find_unused_parameters=true if not, or give them "
            "requires_grad=False."
        )
    if isinstance(error, ValueError) and _ONE_VALUE.search(text) and config.task.name != OWN:
        return TrainingFailed(
            "BatchNorm needs more than one value per channel, but an epoch's last batch is a single image, reduced to "
            "one pixel. Choose a training.batch_size or a dataset.limit that leaves more images for that batch."
        )
    if isinstance(error, ConnectionError | EOFError) and config.dataset.get("pipeline") == "workers":
        return _data_worker_died("ended", config)  # while it passed on a batch
    if isinstance(error, MisconfigurationException) or text.startswith("Early stopping conditioned on metric"):
        return TrainingFailed(refusal(error, config))  # e.g. a metric that nobody logs
    if is_out_of_memory(error):
        return TrainingFailed(_too_little_memory(text, config))
    return error


def refusal(error: Exception, config: Config) -> str:
    """Return Lightning's error in one line, with the configuration key of the object that raised it, if it has one.

    Args:
        config: the resolved configuration of the run.
    """
    nodes = {key: node for group in open_groups.KINDS for key, node in open_groups.entries(config, group)}
    keys = {targets.locate(key, node): key for key, node in nodes.items() if node.get("_target_") is not None}
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    raised_by = [keys[cls] for frame in frames if (cls := type(frame.f_locals.get("self"))) in keys]
    return f"{raised_by[-1] if raised_by else 'Lightning'}: {first_line(error)}"


def _data_worker_died(how: str, config: Config) -> TrainingFailed:
    if config.task.name == OWN:
        return TrainingFailed(
            f"a data worker {how}. If the machine ran out of memory, use fewer num_workers in the LightningDataModule."
        )
    return TrainingFailed(
        f"a data worker {how}. If the machine ran out of memory, use fewer than dataset.num_workers="
        f"{config.dataset['num_workers']}, or dataset.pipeline=memory."
    )


def _too_little_memory(text: str, config: Config) -> str:
    training = config.training
    amount = ""
    if allocation := _ALLOCATION.search(text):
        size = byte_size(float(allocation[1]) * _BYTES[allocation[2].lower()], "GB", 2)
        amount = f" (torch tried to allocate {size} more)"
    batch_size, num_microbatches = training.batch_size, training.num_microbatches
    if config.task.name == OWN:
        return f"out of memory{amount}. Use smaller batches in the LightningDataModule, a smaller model, or device=cpu."
    message = f"out of memory with training.batch_size={batch_size}{amount}."
    images = " or model.image_size" if config.model.get("image_size") else ""
    if batch_size < 2:
        return f"{message} Use a smaller model{images}, or device=cpu."
    smaller = 2 ** ((batch_size - 1).bit_length() - 1)  # the next power of two below
    advice = f"Try training.batch_size={smaller}"
    if batch_size % (2 * num_microbatches) == 0:
        advice += f", or training.num_microbatches={2 * num_microbatches}, which computes the same in smaller pieces"
    if images:
        advice += ", or a smaller model.image_size"
    return f"{message} {advice}."


def out_of_memory_kills(root: Path = Path("/")) -> int:
    """Return how many processes the kernel has killed because of out of memory, in this container or on this machine.

    The number is 0 if the kernel keeps no count.

    Args:
        root: folder that contains proc/ and sys/; tests use another one.
    """
    for name in ("sys/fs/cgroup/memory.events", "proc/vmstat"):
        for line in read_small_file(root / name).splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
