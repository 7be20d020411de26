"""The table of results that a run prints when it has ended."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from laptime.lap.quality import describe
from laptime.record import schema
from laptime.record.epochs import Epoch, combine_rows
from laptime.record.files import TENSORBOARD_DIR, epoch_rows
from laptime.record.run_record import RunRecord
from laptime.record.schema import PHASES, filled
from laptime.terminal import relative
from laptime.text import byte_size, counted

Rows = list[tuple[str, str]]

_STOP_REASONS = {
    "early_stopping": "early: the validation loss did not improve (training.early_stopping_patience)",
    "callback": "early: a callback requested it",
    "time_limit": "by training.time_limit_s, in the middle of {lap}; the test used the weights at that step",
}


def print_results(record: RunRecord, run_dir: Path) -> None:
    """Print the results of a completed run and its directory to stdout."""
    console = Console()
    label = record.run_label
    title = f"laptime: {filled(record.model).name} on {filled(record.dataset).name}{f', {label}' if label else ''}"
    table = Table(title=Text(title), title_justify="left")
    table.add_column("", style="bold", no_wrap=True)
    table.add_column("", overflow="fold")
    for name, value in result_rows(record, combine_rows(epoch_rows(run_dir))):
        table.add_row(Text(name), Text(value))
    table.show_header = False
    console.print(table)
    shown_dir = relative(run_dir)
    console.print(Text(f"Results      {shown_dir}"), soft_wrap=True)
    if (run_dir / TENSORBOARD_DIR).is_dir():
        console.print(Text(f"TensorBoard  tensorboard --logdir {_quoted(shown_dir)}"), soft_wrap=True)


def result_rows(record: RunRecord, epochs: Sequence[Epoch]) -> Rows:
    """Return the rows of the table of results.

    Args:
        record: the record of a completed run.
        epochs: its epochs, in order.
    """
    return [
        *_set_up(record),
        *_epochs(record, epochs),
        *_quality(record.quality),
        *_step(record.breakdown, record.lap_word),
        *([("limit", record.peak.verdict)] if record.peak.verdict is not None else []),
        *_synchronization(record),
        *_overhead(record.bare_loop, record.lap_word),
        *_outcome(record),
    ]


def _set_up(record: RunRecord) -> Rows:
    """Return the rows about device, ranks, model, data and batch."""
    device, batch, model = filled(record.device), filled(record.batch), filled(record.model)
    used = f"{device.used}, {device.name}"
    if (device.num_devices or 1) > 1:
        used = f"{used}, 1 of {device.num_devices}"
    if device.memory_bytes is not None:
        used += f", {byte_size(device.memory_bytes, 'GB')}"
    if device.requested not in ("auto", device.used) and device.used == "cpu":
        used += f"  (requested: {device.requested}, not available)"
    per_rank = f" ({_number(batch.per_rank_batch_size)} per rank)" if filled(record.strategy).world_size > 1 else ""
    return [
        ("device", used),
        ("ranks", _ranks(filled(record.strategy), record.config or {})),
        ("model", f"{model.name}, {_number(model.num_parameters)} parameters"),
        ("data", _data(filled(record.dataset))),
        ("batch size", f"{_number(batch.global_batch_size)}{per_rank}, precision {device.precision}"),
    ]


def _number(count: int | None) -> str:
    return "unknown" if count is None else f"{count:,}"


def _ranks(strategy: schema.Strategy, config: Mapping[str, Any]) -> str:
    ranks = counted(strategy.world_size, "rank")
    if (strategy.num_nodes or 1) > 1:
        ranks += f" on {strategy.num_nodes} nodes"
    if strategy.backend is not None:
        ranks += f" over {strategy.backend}"
        if (comm_hook := config["strategy"].get("comm_hook", "none")) != "none":
            ranks += f" with comm_hook={comm_hook}"
        if strategy.shards_optimizer:
            ranks += ", optimizer sharded"
    threads = counted(strategy.threads_per_rank, "thread") + (" each" if strategy.world_size != 1 else "")
    if strategy.oversubscribed:
        threads += ", oversubscribed: more threads than cores"
    return f"{ranks}, {threads}"


def _data(data: schema.Dataset) -> str:
    sizes = {"train": data.num_train, "val": data.num_val, "test": data.num_test}
    text = ", ".join(f"{num:,} {name}" for name, num in sizes.items() if num is not None)
    if data.vocab_size is not None and data.shape:
        text += f" sequences of {data.shape[0]:,} characters, {data.vocab_size:,} different ones"
    parts = [text, *([f"pipeline {data.pipeline}"] if data.pipeline is not None else [])]
    parts += ["synthetic"] if data.synthetic and data.name != "synthetic" else []
    parts += [f"limited to {data.limit:,}"] if data.limit else []
    return f"{data.name}: {', '.join(parts)}"


def _epochs(record: RunRecord, epochs: Sequence[Epoch]) -> Rows:
    """Return the rows about the epochs (or laps): their number, why they ended, and how long they took."""
    word, num_steps = record.lap_word, record.lap.num_batches
    measured_s = [epoch.epoch_time_s for epoch in epochs if not epoch.is_warmup]
    num_warmup = len(epochs) - len(measured_s)
    counting = f"of which {num_warmup} warm-up (not counted)" if num_warmup else "all counted"
    of_steps = "" if num_steps is None else f" of {counted(num_steps, 'step', ',')}"
    rows = [(f"{word}s", f"{len(epochs)}{of_steps}, {counting}")]
    if len(record.attempts) > 1:
        reasons = [attempt.error.message for attempt in record.attempts if attempt.error is not None]
        rows.append(("restarts", f"{len(reasons)} ({'; '.join(reasons)})"))
    if record.result.stop_reason in _STOP_REASONS:
        a_lap = "an epoch" if word == "epoch" else "a lap"
        rows.append(("stopped", _STOP_REASONS[record.result.stop_reason].format(lap=a_lap)))
    if not measured_s:
        return [*rows, (f"{word} time", f"not measured: there was no {word} after the warm-up")]
    timing = record.timing
    spread = f"median of {len(measured_s)}, min {min(measured_s):.3f} s, max {max(measured_s):.3f} s"
    return [
        *rows,
        (f"{word} time", f"{timing.epoch_time_s:.3f} s  ({spread})"),
        ("throughput", _throughput(timing)),
    ]


def _throughput(timing: schema.Timing) -> str:
    """Return the rates of the counted epochs that are known: modules of users may take steps of their own."""
    rates = (
        (timing.tokens_per_s, "tokens/s", 0),
        (timing.samples_per_s, "samples/s", 0),
        (timing.steps_per_s, "steps/s", 1),
        (timing.batches_per_s if timing.steps_per_s is None else None, "batches/s", 1),
    )
    return ", ".join(f"{rate:,.{digits}f} {unit}" for rate, unit, digits in rates if rate is not None)


def _quality(quality: schema.Quality) -> Rows:
    if quality.grade is None:
        return []
    return [("quality", describe(quality.grade, quality.reasons or ()))]


def _step(breakdown: schema.Breakdown, lap_word: str) -> Rows:
    """Return the rows about the phases of a step, longest first, if they were measured."""
    step_s = breakdown.step_s
    if step_s is None:
        return []
    phases_s = {phase: seconds for phase in PHASES if (seconds := breakdown.of_phase(phase)) is not None}
    longest_first = sorted(phases_s.items(), key=lambda item: -item[1])
    phases = [f"{phase.replace('_', ' ')} {seconds / step_s:.0%}" for phase, seconds in longest_first]
    percentiles_s = {"p50": breakdown.step_p50_s, "p95": breakdown.step_p95_s, "p99": breakdown.step_p99_s}
    percentiles = [f"{name} {1e3 * seconds:.2f} ms" for name, seconds in percentiles_s.items() if seconds]
    epochs_s = step_s - (breakdown.instrument_s or 0.0)
    text = f"{1e3 * step_s:.2f} ms: {', '.join(phases)}; {', '.join(percentiles)}"
    if abs(step_s - epochs_s) > 0.1 * epochs_s:
        text += (
            f". In the {lap_word}s a step takes {1e3 * epochs_s:.2f} ms: something interfered with the {lap_word}s or "
            "with the steps of this measurement"
        )
    return [("step", text)]


def _overhead(bare_loop: schema.BareLoop, lap_word: str) -> Rows:
    """Return the row about the overhead of Lightning and Laptime, if it was measured."""
    overhead, low, high = bare_loop.overhead, bare_loop.overhead_min, bare_loop.overhead_max
    if overhead is None or low is None or high is None or bare_loop.overhead_s_per_step is None:
        return []
    num = bare_loop.num_epochs
    spread = f"one {lap_word}" if num == 1 else f"{low:+.1%} to {high:+.1%} in {num} {lap_word}s"
    if num != 1 and low < 0 < high:
        spread += ", indistinguishable from zero"
    per_step = f"{1e3 * bare_loop.overhead_s_per_step:+.3f} ms per step"
    baseline = f"over a bare PyTorch loop that takes {bare_loop.epoch_time_s:.3f} s per {lap_word}"
    return [("overhead", f"{overhead:+.1%} ({spread}), {per_step}, {baseline}")]


def _synchronization(record: RunRecord) -> Rows:
    """Return the rows about the cost of synchronization and slow ranks, if it was measured."""
    comm, contention = record.communication, record.contention
    rows = []
    if comm.step_s is not None and comm.cost_s is not None and comm.exposed_s is not None:
        num = round(comm.num_all_reduces_per_step or 0)
        cost = f"costs {1e3 * comm.cost_s:.2f} ms of a step of {1e3 * comm.step_s:.2f} ms"
        spread = f"{comm.share_min:.0%} to {comm.share_max:.0%} over the rounds"
        waiting = f"waiting for gradients {1e3 * comm.exposed_s:.2f} ms, {comm.share:.0%} of the step ({spread})"
        sent = f"{byte_size(comm.bytes_per_step or 0, 'MB', 2)} in {counted(num, 'all-reduce')} per step"
        all_reduces = "all-reduce alone takes" if num == 1 else "all-reduces alone take"
        no_cost = f"{waiting}; without synchronization, steps are not faster"
        rows = [
            ("synchronization", f"{cost}; {waiting}" if comm.cost_s > 0 else no_cost),
            ("communication", f"{sent}; the {all_reduces} {1e3 * (comm.isolated_all_reduce_s or 0.0):.2f} ms"),
        ]
    if contention.straggler_delay is not None:
        delay = record.timing.straggler_delay
        in_laps = "" if delay is None else f" ({delay:.1%} in the {record.lap_word}s, where ranks wait for each other)"
        rows.append(("straggler delay", f"slowest rank {contention.straggler_delay:.1%} behind the median{in_laps}"))
    return rows


def _outcome(record: RunRecord) -> Rows:
    """Return the rows about score, loss, and the time of the whole run."""
    timing, result, score = record.timing, record.result, record.score
    rows = []
    if timing.compile_s is not None:
        rows.append(("compile time", f"{timing.compile_s:.1f} s, outside the {record.lap_word}s"))
    for stage, value, loss in (
        ("train", result.train_score, result.train_loss),
        ("val", result.val_score, result.val_loss),
        ("test", result.test_score, result.test_loss),
    ):
        if value is not None:
            loss_words = "" if loss is None else f"  (loss {loss:.4f})"
            rows.append((f"{stage} {score.name}", f"{score.text(value)}{loss_words}"))
    if (target := record.target) is not None:
        reached = result.time_to_score
        name = f"time to {score.target_text(target)}"
        rows.append((name, "not reached" if reached is None else f"{reached:.2f} s of training"))
    if timing.total_train_s is not None:
        started = f", start-up {timing.startup_s:.1f} s" if timing.startup_s is not None else ""
        rows.append(("total time", f"{timing.total_train_s:.1f} s of training and validation{started}"))
    return rows


def _quoted(path: str) -> str:
    return f'"{path}"' if " " in path else path
