"""The sentences for results of the analysis. No code parses them."""

from collections.abc import Iterable

from laptime.analysis.gate import Check
from laptime.analysis.group import Group
from laptime.analysis.labels import truncate_distinctly, without_ranks
from laptime.analysis.mismatch import HOST, Mismatch
from laptime.analysis.results import Agreement, Detail, DifferentScores, Metric, NoTestScore, Scatter, Shift, Verdict
from laptime.analysis.scaling import Family, command_with_one_rank
from laptime.analysis.statistics import MIN_REPEATS, Difference, Interval
from laptime.record.score import Score, descriptions
from laptime.text import counted

# Maximum number of characters of a mismatch's value.
_MAX_LENGTH = 60
_STAGES = {"test": "test", "val": "validation", "train": "training"}


def agreement_words(agreement: Agreement | None) -> str:
    """Say whether a group learns the same as its baseline; empty for the baseline itself."""
    if agreement is None:
        return ""
    match agreement.verdict:
        case Verdict.AGREES:
            return "agrees"
        case Verdict.UNKNOWN:
            if agreement.details:
                return f"inconclusive with one repeat each: {agreement_details(agreement)}"
            return f"{agreement.score.name} not measured"
        case Verdict.DIFFERS:
            return f"differs: {agreement_details(agreement)}"
        case Verdict.INCOMPARABLE:
            return f"not compared: {agreement_details(agreement)}"


def agreement_details(agreement: Agreement) -> str:
    """List the differences between a group's results and its baseline's, joined by commas."""
    return ", ".join(_detail_words(detail, agreement.score) for detail in agreement.details)


def _detail_words(detail: Detail, score: Score) -> str:
    match detail:
        case Shift("train_loss", by):
            return f"training loss {by:+.4f}"
        case Shift(metric, by):
            digits = 1 if metric == "val_score" and abs(100 * by) >= 0.1 else 2
            return f"{_metric_words(metric, score)} {score.difference_text(by, digits)}"
        case Scatter(metric, spread):
            return f"{_metric_words(metric, score)} varies by {score.spread_text(spread)}"
        case NoTestScore(num_missing, num_repeats):
            return f"{num_missing} of {num_repeats} repeats have no test {score.name}"
        case DifferentScores(scores, baseline):
            return f"scored by {descriptions(scores)}, baseline by {descriptions(baseline)}"


def _metric_words(metric: Metric, score: Score) -> str:
    return f"{_STAGES[metric.partition('_')[0]]} {score.name}"


def difference_words(difference: Difference | None) -> str:
    """Say whether a difference from the baseline is significant; None: the group is the baseline itself."""
    if difference is None:
        return "baseline"
    if not difference.decidable:
        return f"inconclusive (needs {difference.repeats_needed} repeats)"
    return f"{'significant' if difference.is_significant else 'not significant'} (p = {difference.p_value:.2g})"


def mismatch_words(mismatch: Mismatch) -> str:
    """Describe a mismatch in one line, with both values."""
    if mismatch.name == HOST:
        return "different host than the baseline"
    value, baseline = truncate_distinctly((mismatch.value, mismatch.baseline), _MAX_LENGTH)
    return _both_values(mismatch.name, value, baseline)


def _both_values(name: str, value: str, baseline: str) -> str:
    title = {"checksum": "data checksum", "lap": "lap:"}.get(name, name)
    return f"{title} {value}, baseline {baseline}"


def missing_baseline_words(family: Family) -> str:
    """Say that a family has no baseline, and name the command that runs it."""
    first = family.points[0].group.first
    command = command_with_one_rank(first.command) if first.record.is_laptime_training else ""
    largest = family.points[-1].group
    problem = f"no one-rank run to compare {_name(largest)} with."
    return f"{problem} Run: {command}" if command else problem


def _name(group: Group) -> str:
    """Return the label of a group. For trainings that Laptime only timed, `2 ranks` replaces `ws=2`."""
    rest = without_ranks(group.label)
    if group.first.record.is_laptime_training or rest == group.label:
        return group.label
    return f"{counted(group.world_size, 'rank')}{f' ({rest})' if rest else ''}"


def check_words(check: Check) -> str:
    """Return the line that the gate prints for a group."""
    remarks = [_both_values(mismatch.name, mismatch.value, mismatch.baseline) for mismatch in check.mismatches]
    if check.change is None and not check.mismatches:
        remarks.append("no completed run of this group")
    if not check.names_machine:
        remarks.append("the baseline summary does not say which machine it was measured on")
    interval = f" ({check.interval.low:.3f} to {check.interval.high:.3f})" if check.interval else ""
    change = "not compared" if check.change is None else f"{check.change:.3f} x the baseline throughput{interval}"
    remark = f"; {'; '.join(remarks)}" if remarks else ""
    return f"gate: {check.verdict.value:7} {check.group}: {change}{remark}"


def times(ratio: float) -> str:
    return f"{ratio:.2f} times"


def interval_words(interval: Interval | None, num_repeats: int) -> str:
    if interval is None:
        return "one repeat: no interval"
    kind = "95% interval" if num_repeats >= MIN_REPEATS else f"interval of {num_repeats} repeats"
    return f"{kind} {interval.low:.2f} to {interval.high:.2f}"


def source_of_steps(groups: Iterable[Group]) -> str:
    """Say in which steps the phases were measured."""
    records = [group.first.record for group in groups]
    by_laptime = {record.lap_word for record in records if record.is_laptime_training}
    laps = "epochs" if by_laptime == {"epoch"} else "laps"
    separate, warmup = f"separate steps after the timed {laps} (measure.breakdown)", "steps of the warm-up lap"
    trained_by_laptime = {record.is_laptime_training for record in records}
    if trained_by_laptime == {True, False}:
        return f"{separate}; in trainings that Laptime only timed, from {warmup}"
    return separate if True in trained_by_laptime else warmup
