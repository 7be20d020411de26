"""Formats the output of a timer: one line per lap, and a summary at the end."""

import contextlib
import sys
from pathlib import Path

from laptime.lap.quality import describe
from laptime.record.epochs import Epoch
from laptime.record.run_record import RunRecord
from laptime.record.schema import PHASES, filled
from laptime.record.score import Score
from laptime.terminal import relative
from laptime.text import counted, duration


def lap_line(
    lap: Epoch, num_laps: int | None, remaining_s: float | None, note: str = "", score: Score | None = None
) -> str:
    """Return the line of a lap.

    Args:
        num_laps: number of laps of the whole training; None: unknown.
        remaining_s: estimated seconds until the end of the training; None: not shown.
        note: the reason why the lap isn't counted.
        score: the score that the user has named; None: none is shown.
    """
    parts = [f"lap {lap.epoch + 1}{'' if num_laps is None else f'/{num_laps}'}", f"{lap.epoch_time_s:.2f} s"]
    if lap.samples_per_s is not None:
        parts.append(f"{lap.samples_per_s:,.0f} samples/s")
    if lap.tokens_per_s is not None:
        parts.append(f"{lap.tokens_per_s:,.0f} tokens/s")
    if lap.train_loss is not None:
        parts.append(f"loss {lap.train_loss:.4f}")
    if score is not None:
        values = {"train": lap.train_score, "val": lap.val_score}
        parts += [f"{stage} {score.name} {score.number(v)}" for stage, v in values.items() if v is not None]
    if lap.apart_s is not None and lap.apart_s >= 0.005:
        parts.append(f"{lap.apart_s:.2f} s excluded")
    if note:
        parts.append(note)
    if remaining_s is not None:
        parts.append(f"about {duration(remaining_s)} remaining" if remaining_s >= 0.95 else "less than 1 s remaining")
    return "  ".join(parts)


def summary_lines(record: RunRecord, run_dir: Path | None) -> list[str]:
    """Return the lines at the end of a run."""
    timing, strategy = record.timing, filled(record.strategy)
    title = f"{filled(record.model).name} on {filled(record.dataset).name}, {filled(record.device).used}"
    title += f", {counted(strategy.world_size, 'rank')}"
    lines = []
    if record.status not in ("running", "completed"):
        num_laps = len(record.noise.epochs or [])
        lines.append(f"{record.status} after {counted(num_laps, 'lap')}: the analysis excludes this run")
    if timing.epoch_time_s is None:
        reason = ", because all laps are warm-up laps. Pass every= for shorter laps" if record.noise.epochs else ""
        lines.append(f"{title}: no lap was counted{reason}")
    else:
        rates = [
            f"{rate:,.{digits}f} {unit}"
            for rate, unit, digits in (
                (timing.samples_per_s, "samples/s", 0),
                (timing.tokens_per_s, "tokens/s", 0),
                (timing.batches_per_s, "batches/s", 1),
            )
            if rate is not None
        ]
        lines.append(f"{title}: median lap {timing.epoch_time_s:.3f} s, {', '.join(rates)}")
        if len(record.noise.epochs or []) == 1:
            lines.append(_one_lap_line(record))
    if step_s := record.breakdown.step_s:
        fractions = [(phase, (record.breakdown.of_phase(phase) or 0.0) / step_s) for phase in PHASES]
        names = {} if record.breakdown.optimizer_s is not None else {"backward": "backward and optimizer"}
        shown = [(names.get(phase, phase), fraction) for phase, fraction in fractions if fraction >= 0.005]
        phases = ", ".join(f"{name} {fraction:.0%}" for name, fraction in shown)
        lines.append(f"step time {1e3 * step_s:.2f} ms: {phases}")
    if record.peak.verdict is not None:
        lines.append(record.peak.verdict)
    if record.quality.grade is not None:
        lines.append(f"quality {describe(record.quality.grade, record.quality.reasons or ())}")
    if run_dir is not None:
        lines.append(f"results in {relative(run_dir)}")
    return lines


def _one_lap_line(record: RunRecord) -> str:
    """Return the line about a run with a single lap, in which nothing could be measured beforehand."""
    figures = (("phases", record.breakdown.step_s), ("MFU", record.peak.mfu))
    missing = " and ".join(f"no {name}" for name, value in figures if value is None)
    return f"one lap only: it includes the warm-up{missing and '; ' + missing}. Pass every= for several laps"


def print_line(line: str) -> None:
    """Print a line to stderr, above the progress bars of tqdm."""
    tqdm = sys.modules.get("tqdm")
    with contextlib.suppress(OSError, ValueError):  # stderr is closed
        if tqdm is not None and getattr(tqdm.tqdm, "_instances", None):
            tqdm.tqdm.write(f"laptime: {line}", file=sys.stderr)
        elif sys.stderr is not None:
            print(f"laptime: {line}", file=sys.stderr, flush=True)
