"""Makes remarks about a group: facts that a reader of its figures needs."""

from collections.abc import Sequence

from laptime.analysis.group import Group, lap_word
from laptime.analysis.mismatch import Mismatch
from laptime.analysis.wording import mismatch_words
from laptime.record.score import descriptions
from laptime.text import counted, escape_control_chars

# A standard deviation between repeats above this fraction of the median gets a remark.
_WIDE_SPREAD = 0.1
# A trend above this fraction over the counted epochs gets a remark.
_TREND = 0.02


def remarks_of(group: Group, mismatches: Sequence[Mismatch] = ()) -> list[str]:
    """Return remarks about a group, including its differences from its baseline.

    Args:
        mismatches: the differences from the baseline that the group is compared with.
    """
    remarks = []
    if group.absent_devices:
        remarks.append(f"{', '.join(group.absent_devices)} is not available on this machine: trained on cpu")
    if group.first.strategy.oversubscribed:
        remarks.append("oversubscribed: more threads than cores")
    worst = next((run for run in group.runs if run.record.quality.grade == group.quality), None)
    if worst is not None and group.quality > "A":
        num = sum(run.record.quality.grade == group.quality for run in group.runs)
        reasons = "; ".join(worst.record.quality.reasons or [])
        remarks.append(
            f"quality {group.quality} in {num} of {len(group.runs)} repeats: {escape_control_chars(reasons)}"
        )
    if len(group.runs) == 1:
        remarks.append("one repeat: no interval")
    num_known, num_seeds = len(group.runs) - group.num_unseeded, group.num_seeds - group.num_unseeded
    if not group.first.record.is_laptime_training and num_seeds < num_known:
        remarks.append(
            f"{num_known} repeats have only {counted(num_seeds, 'seed')}: check that their settings are the same"
        )
    std, median = group.samples_per_s.std_repeats, group.samples_per_s.median
    if std is not None and std > _WIDE_SPREAD * median:
        remarks.append(f"standard deviation between repeats: {std / median:.0%}")
    rise = group.trend
    if rise is not None and rise < -_TREND:
        remarks.append(
            f"{lap_word([group])}s got faster by {-rise:.0%} from the first to the last: {_longer_warmup(group)}"
        )
    elif rise is not None and rise > _TREND:
        remarks.append(f"{lap_word([group])}s get slower by {rise:.0%}: the machine may be throttling or busy")
    latest = max(group.runs, key=lambda run: str(run.record.started_at))
    target = latest.laptime_config.get("measure", {}).get("target_interval")
    if target is not None:
        width = "unknown" if group.interval_width is None else f"{group.interval_width:.1%}"
        verdict = "reached" if group.is_precise(target) else "not reached"
        remarks.append(f"target interval {target:.1%}: {verdict} with {len(group.runs)} repeats (interval: {width})")
    if group.num_unseeded and len(group.runs) > 1:
        which = f"{group.num_unseeded} of {len(group.runs)} repeats"
        remarks.append(f"unknown seed in {which}: they may have had the same seed")
    if group.score is None:
        remarks.append(f"the repeats have different scores, which are not compared: {descriptions(group.scores)}")
    if len(group.hosts) > 1:
        remarks.append(f"runs on {len(group.hosts)} hosts")
    if any(run.is_resumed for run in group.runs):
        remarks.append(f"resumed from a checkpoint: total time covers only the {lap_word([group])}s since then")
    if any(len(run.record.attempts) > 1 for run in group.runs):
        remarks.append("some runs were interrupted and resumed")
    early = {reason for run in group.runs if (reason := run.record.result.stop_reason) not in ("epochs", None)}
    if early:
        remarks.append(f"stopped by {', '.join(sorted(map(str, early)))}")
    remarks += sorted({remark for run in group.runs for remark in run.remarks})
    return remarks + [mismatch_words(mismatch) for mismatch in mismatches]


def _longer_warmup(group: Group) -> str:
    is_laptime_training = group.first.record.is_laptime_training
    return f"raise {'measure.warmup_epochs' if is_laptime_training else 'warmup_laps'}"
