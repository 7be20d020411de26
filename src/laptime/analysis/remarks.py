"""What to know of a group's figures, in words."""

from collections.abc import Sequence

from laptime.analysis.group import Group, lap_word
from laptime.analysis.mismatch import Mismatch
from laptime.analysis.wording import mismatch_words
from laptime.text import counted, escape_control_chars

# A spread between repeats of more than this share of the median is said.
_WIDE_SPREAD = 0.1
# So is a trend of more than this share over the counted epochs.
_TREND = 0.02


def remarks_of(group: Group, mismatches: Sequence[Mismatch] = ()) -> list[str]:
    """What to know of the figures of a group, and in what else it differs from its baseline.

    Args:
        group: any.
        mismatches: from the baseline that it is compared with.
    """
    found = []
    if group.absent_devices:
        found.append(f"{', '.join(group.absent_devices)} was asked for and absent: trained on cpu")
    if group.first.strategy.oversubscribed:
        found.append("oversubscribed: more threads than cores")
    worst = next((run for run in group.runs if run.record.quality.grade == group.quality), None)
    if worst is not None and group.quality > "A":
        num = sum(run.record.quality.grade == group.quality for run in group.runs)
        reasons = "; ".join(worst.record.quality.reasons or [])
        found.append(f"quality {group.quality} of {num} of {len(group.runs)} repeats: {escape_control_chars(reasons)}")
    if len(group.runs) == 1:
        found.append("one repeat: no interval")
    num_known, num_seeds = len(group.runs) - group.num_unseeded, group.num_seeds - group.num_unseeded
    if not group.first.record.is_laptime_training and num_seeds < num_known:
        found.append(f"{num_known} repeats have {counted(num_seeds, 'seed')}: were their settings the same?")
    between = group.samples_per_s.between
    if between is not None and between > _WIDE_SPREAD * group.samples_per_s.median:
        found.append(f"repeats differ by {between / group.samples_per_s.median:.0%}")
    rise = group.trend
    if rise is not None and rise < -_TREND:
        found.append(f"{lap_word([group])}s still get faster, by {-rise:.0%}: {_too_short(group)}")
    elif rise is not None and rise > _TREND:
        found.append(f"{lap_word([group])}s get slower, by {rise:.0%}: is the machine throttling, or busy?")
    latest = max(group.runs, key=lambda run: str(run.record.started_at))
    target = latest.laptime_config.get("measure", {}).get("target_interval")
    if target is not None:
        width = "unknown" if group.interval_width is None else f"{group.interval_width:.1%}"
        verdict = "reached" if group.is_precise(target) else "not reached"
        found.append(f"target interval of {target:.1%} {verdict} with {len(group.runs)} repeats: {width}")
    if group.num_unseeded and len(group.runs) > 1:
        which = f"{group.num_unseeded} of {len(group.runs)} repeats"
        found.append(f"the seed of {which} is not known: they may have learned the same")
    if len(group.hosts) > 1:
        found.append(f"on {len(group.hosts)} hosts")
    if any(run.is_resumed for run in group.runs):
        found.append(f"resumed from a checkpoint: total time is of the {lap_word([group])}s since")
    if any(len(run.record.attempts) > 1 for run in group.runs):
        found.append("some runs were broken off and gone on with")
    early = {reason for run in group.runs if (reason := run.record.result.stop_reason) not in ("epochs", None)}
    if early:
        found.append(f"stopped by {', '.join(sorted(map(str, early)))}")
    found += sorted({remark for run in group.runs for remark in run.remarks})
    return found + [mismatch_words(mismatch) for mismatch in mismatches]


def _too_short(group: Group) -> str:
    is_own = group.first.record.is_laptime_training
    return "measure.warmup_epochs is too small" if is_own else "the warm-up is too short"
