"""What a run says: the log on stderr and in train.log, the table of results on stdout."""

import logging
import os
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from laptime.record.files import LOG_FILE, PARTS, TENSORBOARD_DIR, each_epoch_once, read_epochs
from laptime.record.masking import mask_text
from laptime.text import byte_size, counted

# Where no terminal says how wide it is.
_WIDTH = 160


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what is sys.stderr now: a progress bar puts itself there and keeps the lines above it."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        raise AttributeError("always sys.stderr")


class _WithoutSecrets(logging.Formatter):
    def __init__(self, secrets: Collection[str], layout: str, date_layout: str | None = None) -> None:
        super().__init__(layout, date_layout)
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        return mask_text(super().format(record), self._secrets)


@contextmanager
def logging_to(
    run_dir: Path, rank: int = 0, level: int = logging.INFO, secrets: Collection[str] = (), tag: str = ""
) -> Iterator[None]:
    """Send the log to train.log, lines tagged with time and rank, and from rank 0 to stderr as well.

    What was set up before comes back afterwards.

    Args:
        secrets: are masked wherever the log goes.
        tag: before each line on stderr, where several runs write there.
    """
    file = logging.FileHandler(run_dir / LOG_FILE, encoding="utf-8", delay=True)
    layout = f"[%(asctime)s][rank {rank}][%(levelname)s][%(name)s] %(message)s"
    file.setFormatter(_WithoutSecrets(secrets, layout))
    handlers: list[logging.Handler] = [file]
    if rank == 0:
        stderr = StderrHandler()
        stderr.setFormatter(_WithoutSecrets(secrets, f"[%(asctime)s] {tag}%(levelprefix)s%(message)s", "%H:%M:%S"))
        stderr.addFilter(_add_level_prefix)
        handlers.append(stderr)
    root = logging.getLogger()
    before, level_before, showwarning = root.handlers[:], root.level, warnings.showwarning
    root.handlers[:] = handlers
    root.setLevel(level)
    warnings.showwarning = _log_warning
    try:
        yield
    finally:
        root.handlers[:] = before
        root.setLevel(level_before)
        warnings.showwarning = showwarning
        file.close()


def _add_level_prefix(record: logging.LogRecord) -> bool:
    record.levelprefix = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
    return True


def _log_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    logging.getLogger("py.warnings").warning("%s (%s:%d)", message, Path(filename).name, lineno)


def wide_console() -> Console:
    """For a table with many columns, on stdout: as wide as the terminal; where there is none, as it needs to be."""
    return Console(width=None if sys.stdout is not None and sys.stdout.isatty() else _WIDTH)


def show_whatever_can_be_shown() -> None:
    """Let a terminal that has no Unicode show a question mark where it lacks a character."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


@contextmanager
def unread() -> Iterator[None]:
    """What is printed within may find nobody who reads it (`| head`): that is no failure, and the rest goes nowhere."""
    try:
        yield
        if sys.stdout is not None:  # as where it was closed from the start
            sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:  # rich ends the process for it
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_results(record: Mapping[str, Any], run_dir: Path) -> None:
    """Print what a completed run measured, and where it lies, to stdout."""
    console = Console()
    label = record["config"].get("run_label")
    title = f"laptime: {record['model']['name']} on {record['dataset']['name']}{f', {label}' if label else ''}"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("", style="bold", no_wrap=True)
    table.add_column("", overflow="fold")
    for name, value in result_rows(record, each_epoch_once(read_epochs(run_dir))):
        table.add_row(Text(name), Text(value))
    table.show_header = False
    console.print(table)
    place = relative(run_dir)
    console.print(Text(f"Results      {place}"), soft_wrap=True)
    if (run_dir / TENSORBOARD_DIR).is_dir():
        console.print(Text(f"TensorBoard  tensorboard --logdir {_quoted(place)}"), soft_wrap=True)


_STOP_REASONS = {
    "early_stopping": "early: the validation loss got no better (training.early_stopping_patience)",
    "callback": "early: a callback asked for it",
    "time_limit": "by training.time_limit_s; test figures are of the weights at that moment",
}


def result_rows(record: Mapping[str, Any], epochs: pd.DataFrame) -> list[tuple[str, str]]:
    """The lines of the table of results.

    Args:
        record: as in run.json.
        epochs: as in epochs.csv, each epoch once; needs epoch, is_warmup and epoch_time_s.
    """
    device, timing, result, batch = record["device"], record["timing"], record["result"], record["batch"]
    data, model, strategy = record["dataset"], record["model"], record["strategy"]
    used = f"{device['used']}, {device['name']}"
    if device["num_devices"] > 1:
        used = f"{used}, 1 of {device['num_devices']}"
    if device["memory_bytes"] is not None:
        used += f", {byte_size(device['memory_bytes'], 'GB')}"
    if device["requested"] not in ("auto", device["used"]) and device["used"] == "cpu":
        used += f"  (requested: {device['requested']}, absent)"
    slowest = epochs.groupby("epoch")[["epoch_time_s", "is_warmup"]].max()
    measured = slowest.loc[~slowest["is_warmup"].astype(bool), "epoch_time_s"]
    num_warmup = len(slowest) - len(measured)
    ranks = counted(strategy["world_size"], "rank")
    if strategy["num_nodes"] > 1:
        ranks += f" on {strategy['num_nodes']} nodes"
    if strategy["backend"] is not None:
        ranks += f" over {strategy['backend']}"
        if (comm_hook := record["config"]["strategy"].get("comm_hook", "none")) != "none":
            ranks += f" with comm_hook={comm_hook}"
        if strategy.get("shards_optimizer"):
            ranks += ", optimizer sharded"
    threads = f"{counted(strategy['threads_per_rank'], 'thread')} each"
    if strategy["oversubscribed"]:
        threads += ", oversubscribed: more threads than cores"
    per_rank = f" ({batch['per_rank_batch_size']:,} per rank)" if strategy["world_size"] > 1 else ""
    rows = [
        ("device", used),
        ("ranks", f"{ranks}, {threads}"),
        ("model", f"{model['name']}, {model['num_parameters']:,} parameters"),
        ("data", _data(data)),
        ("batch size", f"{batch['global_batch_size']:,}{per_rank}, precision {device['precision']}"),
        (
            "epochs",
            f"{len(slowest)}, {f'of which {num_warmup} warm-up (not counted)' if num_warmup else 'all counted'}",
        ),
    ]
    if len(record["attempts"]) > 1:
        reasons = [attempt["error"]["message"] for attempt in record["attempts"] if attempt["error"] is not None]
        rows.append(("restarts", f"{len(reasons)}, after: {'; '.join(reasons)}"))
    if result["stop_reason"] in _STOP_REASONS:
        rows.append(("stopped", _STOP_REASONS[result["stop_reason"]]))
    if len(measured):
        spread = f"median of {len(measured)}, min {measured.min():.3f} s, max {measured.max():.3f} s"
        rows += [
            ("epoch time", f"{timing['epoch_time_s']:.3f} s  ({spread})"),
            ("throughput", f"{timing['samples_per_s']:,.0f} samples/s, {timing['steps_per_s']:,.1f} steps/s"),
        ]
    else:
        rows.append(("epoch time", "not measured: no epoch after the warm-up"))
    quality = record["quality"]
    if quality["grade"] is not None:
        why = f": {'; '.join(quality['reasons'])}" if quality["reasons"] else ": nothing was seen to disturb it"
        rows.append(("quality", f"{quality['grade']}{why}"))
    rows += _step(record["breakdown"])
    if record["peak"]["verdict"] is not None:
        rows.append(("limit", record["peak"]["verdict"]))
    rows += _synchronisation(record) + _overhead(record["bare_loop"])
    if timing["compile_s"] is not None:
        rows.append(("compile time", f"{timing['compile_s']:.1f} s, outside the epochs"))
    for part in ("train", "val", "test"):
        accuracy, loss = result[f"{part}_accuracy"], result[f"{part}_loss"]
        if accuracy is not None:
            rows.append((f"{part} accuracy", f"{accuracy:.2%}  (loss {loss:.4f})"))
    if record["config"]["measure"]["target_accuracy"] is not None:
        reached = result["time_to_accuracy"]
        target = record["config"]["measure"]["target_accuracy"]
        rows.append((f"time to {target:.1%}", "not reached" if reached is None else f"{reached:.2f} s of training"))
    total = timing["total_train_s"]
    startup = timing["startup_s"]
    if total is not None:
        started = f", start-up {startup:.1f} s" if startup is not None else ""
        rows.append(("total time", f"{total:.1f} s of training and validation{started}"))
    return rows


def _step(breakdown: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Where the time of a step goes, largest part first, where it was measured."""
    step_s = breakdown["step_s"]
    if step_s is None:
        return []
    shares = {part: breakdown[f"{part}_s"] / step_s for part in PARTS if breakdown[f"{part}_s"] is not None}
    parts = [f"{part.replace('_', ' ')} {share:.0%}" for part, share in sorted(shares.items(), key=lambda one: -one[1])]
    slow = [f"p{q} {1e3 * breakdown[f'step_p{q}_s']:.2f} ms" for q in (50, 95, 99) if breakdown[f"step_p{q}_s"]]
    epochs_s = step_s - (breakdown["instrument_s"] or 0.0)
    words = f"{1e3 * step_s:.2f} ms: {', '.join(parts)}; {', '.join(slow)}"
    if abs(step_s - epochs_s) > 0.1 * epochs_s:
        words += f". In the epochs a step took {1e3 * epochs_s:.2f} ms: something disturbed one of them"
    return [("step", words)]


def _overhead(bare_loop: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What Lightning and Laptime cost, where it was measured."""
    if bare_loop["overhead"] is None:
        return []
    low, high, num = bare_loop["overhead_min"], bare_loop["overhead_max"], bare_loop["num_epochs"]
    reach = "one epoch" if num == 1 else f"{low:+.1%} to {high:+.1%} in {num} epochs"
    if num > 1 and low < 0 < high:
        reach += ", not told apart from none"
    a_step = f"{1e3 * bare_loop['overhead_s_per_step']:+.3f} ms a step"
    against = f"against a bare PyTorch loop of {bare_loop['epoch_time_s']:.3f} s an epoch"
    return [("overhead", f"{bare_loop['overhead']:+.1%} ({reach}), {a_step}, {against}")]


def _synchronisation(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What several ranks cost each other, where it was measured."""
    comm, contention = record["communication"], record["contention"]
    rows = []
    if comm["step_s"] is not None:
        num = comm["num_all_reduces_per_step"]
        cost = f"costs {1e3 * comm['cost_s']:.2f} ms of a step of {1e3 * comm['step_s']:.2f} ms"
        if comm["cost_s"] <= 0:
            cost = "costs less than the steps vary on this machine now"
        spread = f"{comm['share_min']:.0%} to {comm['share_max']:.0%} over the rounds"
        waiting = f"waiting for gradients {1e3 * comm['exposed_s']:.2f} ms, {comm['share']:.0%} of the step ({spread})"
        sent = f"{byte_size(comm['bytes_per_step'], 'MB', 2)} in {counted(num, 'all-reduce')} per step"
        rows = [
            ("synchronisation", f"{cost}; {waiting}"),
            ("communication", f"{sent}; with nothing around {1e3 * comm['bare_all_reduce_s']:.2f} ms"),
        ]
    if contention["straggling"] is not None:
        epochs = record["timing"]["straggling"]
        in_epochs = "" if epochs is None else f" ({epochs:.1%} in the epochs, where ranks wait for each other)"
        rows.append(("straggling", f"slowest rank {contention['straggling']:.1%} behind the median{in_epochs}"))
    return rows


def _data(data: Mapping[str, Any]) -> str:
    parts = f"{data['num_train']:,} train, {data['num_val']:,} val, {data['num_test']:,} test"
    remarks = ["synthetic"] if data["synthetic"] and data["name"] != "synthetic" else []
    remarks += [f"limited to {data['limit']:,}"] if data["limit"] else []
    return f"{data['name']}: {parts}, pipeline {data['pipeline']}{', ' + ', '.join(remarks) if remarks else ''}"


def relative(path: Path) -> str:
    """A path as one would type it here."""
    below_here = path != Path.cwd() and path.is_relative_to(Path.cwd())
    return str(path.relative_to(Path.cwd())) if below_here else str(path)


def _quoted(path: str) -> str:
    return f'"{path}"' if " " in path else path
