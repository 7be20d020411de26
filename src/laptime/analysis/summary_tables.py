"""Makes the tables for CSV files as data frames: groups.csv, scaling.csv, devices.csv and comparisons.csv."""

from collections.abc import Sequence
from dataclasses import asdict

import pandas as pd

from laptime.analysis.compare import Comparison
from laptime.analysis.group import Group, Target, reached
from laptime.analysis.laws import efficiency, karp_flatt
from laptime.analysis.remarks import remarks_of
from laptime.analysis.scaling import Family, projections
from laptime.analysis.statistics import Interval, median_and_deviation
from laptime.analysis.wording import agreement_words, difference_words
from laptime.record.schema import PHASES
from laptime.record.score import ACCURACY


def groups_table(groups: Sequence[Group], target: Target | None = None) -> pd.DataFrame:
    """Return one row per group: repeats, medians, standard deviations and extremes. None means not measured.

    Columns in `_between` are standard deviations between repeats, those in `_within` between the epochs of a repeat.
    """
    rows = []
    for group in groups:
        row: dict[str, object] = {"group": group.label, "num_repeats": len(group.runs)}
        row["seeds"] = " ".join(str(run.seed) for run in group.runs if run.seed is not None)
        row |= {"device": group.first.device.used, "model": group.first.model.name}
        row |= {"dataset": group.first.dataset.name, "world_size": group.world_size}
        row |= {"threads_per_rank": group.first.strategy.threads_per_rank}
        row |= {"global_batch_size": group.first.batch.global_batch_size}
        row |= {"precision": group.first.device.precision, "lap": group.conditions.lap}
        for name, summary in (("epoch_time_s", group.epoch_time_s), ("samples_per_s", group.samples_per_s)):
            row |= {name: summary.median, f"{name}_between": summary.std_repeats, f"{name}_within": summary.std_epochs}
            row |= {f"{name}_min": summary.low, f"{name}_max": summary.high}
        row["score"] = score_names(group)
        for key in (f"{stage}_{what}" for what in ("accuracy", "score", "loss") for stage in ("test", "val", "train")):
            values = group.values("result", key)
            row[key], row[f"{key}_between"] = median_and_deviation(values) if values else (None, None)
        targets = ("target_accuracy", "num_reached", "time_to_accuracy_s", "target_score", "time_to_score_s")
        row |= dict.fromkeys(targets)
        if (time := reached(group, target)) is not None:
            row |= {"num_reached": time.num_reached, "target_score": time.target, "time_to_score_s": time.time_s}
            if time.score == ACCURACY:
                row |= {"target_accuracy": time.target, "time_to_accuracy_s": time.time_s}
        for section, key in _MEDIANS:
            row[f"bare_loop_{key}" if section == "bare_loop" else key] = group.median(section, key)
        row["quality"] = group.quality
        row["remarks"] = "; ".join(remarks_of(group))
        rows.append(row)
    return pd.DataFrame(rows)


def score_names(group: Group) -> str | None:
    """Return the name of the score of a group; all names if the repeats differ; None: there is no score."""
    return " and ".join(score.name for score in group.scores) or None


_MEDIANS = (
    ("timing", "tokens_per_s"), ("timing", "batches_per_s"), ("timing", "total_train_s"), ("timing", "startup_s"),
    ("resources", "peak_rss_bytes"),
    ("resources", "peak_device_memory_bytes"), ("resources", "cpu_percent"), ("resources", "energy_joules"),
    ("resources", "energy_joules_per_1000_samples"), *(("breakdown", f"{phase}_s") for phase in PHASES),
    ("breakdown", "step_s"), ("breakdown", "step_p50_s"), ("breakdown", "step_p95_s"), ("breakdown", "step_p99_s"),
    ("peak", "achieved_flop_per_s"), ("peak", "matmul_flop_per_s"), ("peak", "mfu"),
    ("bare_loop", "overhead"), ("bare_loop", "overhead_s_per_step"),
)  # fmt: skip


_SCALING_COLUMNS = (
    "family", "scaling", "group", "world_size", "projected", "num_repeats", "samples_per_s", "epoch_time_s", "expected",
    "speedup", "speedup_low", "speedup_high", "efficiency", "efficiency_low", "efficiency_high", "serial_fraction",
    "speedup_over_one_rank_ddp", "speedup_over_one_rank_ddp_low", "speedup_over_one_rank_ddp_high", "ideal_s_per_step",
    "contention_s_per_step", "oversubscription_s_per_step", "communication_s_per_step", "straggler_delay_s_per_step",
    "rest_s_per_step", "step_s_per_step", "results", "remarks",
)  # fmt: skip


def scaling_table(families: Sequence[Family], project: Sequence[int] = ()) -> pd.DataFrame:
    """Return one row per family and number of ranks, measured or projected. Intervals are None with one repeat."""
    rows: list[dict[str, object]] = []
    for family in families:
        for point in family.points:
            p, group = point.world_size, point.group
            row: dict[str, object] = {"family": family.name, "scaling": family.kind, "group": group.label}
            row |= {"world_size": p, "projected": False, "num_repeats": len(group.runs)}
            row |= {"samples_per_s": group.samples_per_s.median, "epoch_time_s": group.epoch_time_s.median}
            row |= {"expected": float(p), "speedup": point.speedup} | _bounds("speedup", point.speedup_interval)
            row["efficiency"] = None if point.speedup is None else efficiency(point.speedup, p)
            row |= _bounds("efficiency", point.speedup_interval, 1 / p)
            row["serial_fraction"] = None if point.speedup is None else karp_flatt(point.speedup, p)
            row["speedup_over_one_rank_ddp"] = point.speedup_over_ddp
            row |= _bounds("speedup_over_one_rank_ddp", point.ddp_interval)
            row |= {f"{name}_s_per_step": value for name, value in asdict(point.overheads).items()}
            row["results"] = agreement_words(point.agreement)
            row["remarks"] = "; ".join(remarks_of(group, point.mismatches))
            rows.append(row)
        for projected in projections(family, project):
            p = projected.world_size
            row = {"family": family.name, "scaling": family.kind, "world_size": p, "projected": True}
            row |= {"expected": float(p), "speedup": projected.speedup} | _bounds("speedup", projected.interval)
            row |= {"efficiency": efficiency(projected.speedup, p)} | _bounds("efficiency", projected.interval, 1 / p)
            rows.append(row | {"remarks": "projected, not measured"})
    return pd.DataFrame(rows, columns=list(_SCALING_COLUMNS))


_COMPARISON_COLUMNS = (
    "key", "common", "value", "device_name", "num_repeats", "epoch_time_s", "samples_per_s", "total_train_s", "speedup",
    "speedup_low", "speedup_high", "p_value", "verdict", "test_accuracy", "score", "test_score", "results",
    "remarks",
)  # fmt: skip


def comparison_table(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Return one row per comparison and value."""
    rows = []
    for comparison in comparisons:
        for row in comparison.rows:
            group = row.group
            rows.append(
                {
                    "key": comparison.key,
                    "common": comparison.common,
                    "value": row.value,
                    "device_name": group.first.device.name,
                    "num_repeats": len(group.runs),
                    "epoch_time_s": group.epoch_time_s.median,
                    "samples_per_s": group.samples_per_s.median,
                    "total_train_s": group.median("timing", "total_train_s"),
                    "speedup": row.speedup,
                    **_bounds("speedup", row.interval),
                    "p_value": row.difference.p_value if row.difference else None,
                    "verdict": difference_words(row.difference),
                    "test_accuracy": group.median("result", "test_accuracy"),
                    "score": score_names(group),
                    "test_score": group.median("result", "test_score"),
                    "results": agreement_words(row.agreement),
                    "remarks": "; ".join(remarks_of(group, row.mismatches)),
                }
            )
    return pd.DataFrame(rows, columns=list(_COMPARISON_COLUMNS))


def _bounds(name: str, interval: Interval | None, scale: float = 1.0) -> dict[str, object]:
    """Return the columns NAME_low and NAME_high of an interval. They are None without an interval."""
    low, high = (interval.low * scale, interval.high * scale) if interval else (None, None)
    return {f"{name}_low": low, f"{name}_high": high}
