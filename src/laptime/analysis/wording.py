"""What the analysis found, in words. Nothing reads them back."""

from collections.abc import Iterable

from laptime.analysis.gate import Check
from laptime.analysis.group import Group
from laptime.analysis.labels import truncate_distinctly, without_ranks
from laptime.analysis.mismatch import HOST, Mismatch
from laptime.analysis.results import Agreement, NoTestAccuracy, Scatter, Shift, Verdict
from laptime.analysis.scaling import Family, command_with_one_rank
from laptime.analysis.statistics import MIN_REPEATS, Difference, Interval
from laptime.text import counted

# Of what a group and its baseline differ in, so many characters are shown.
_LONGEST = 60
_FIGURES = {"test_accuracy": "test accuracy", "val_accuracy": "validation accuracy", "train_loss": "training loss"}


def agreement_words(agreement: Agreement | None) -> str:
    """Whether a group learns the same as its baseline; empty for the baseline itself."""
    if agreement is None:
        return ""
    match agreement.verdict:
        case Verdict.AGREES:
            return "agrees"
        case Verdict.UNKNOWN:
            if agreement.details:
                return f"not known with one repeat each: {undecided_words(agreement)}"
            return "not known: no accuracy was measured"
        case Verdict.DIFFERS:
            return f"differs: {', '.join(map(_detail_words, agreement.details))}"


def undecided_words(agreement: Agreement) -> str:
    """The differences that an agreement leaves undecided; empty where there are none."""
    return "" if agreement.verdict is not Verdict.UNKNOWN else ", ".join(map(_detail_words, agreement.details))


def _detail_words(detail: Shift | Scatter | NoTestAccuracy) -> str:
    match detail:
        case Shift("test_accuracy", by):
            return f"{_FIGURES['test_accuracy']} {100 * by:+.2f} points"
        case Shift("val_accuracy", by):
            points = 100 * by
            return f"{_FIGURES['val_accuracy']} {points:+.{1 if abs(points) >= 0.1 else 2}f} points"
        case Shift(figure, by):
            return f"{_FIGURES[figure]} {by:+.4f}"
        case Scatter("test_accuracy", spread):
            return f"{_FIGURES['test_accuracy']} varies by {100 * spread:.2f} points"
        case Scatter(figure, spread):
            return f"{_FIGURES[figure]} varies by {spread:.2f}"
        case NoTestAccuracy(num_missing, num_repeats):
            return f"{num_missing} of {num_repeats} repeats have no test accuracy"


def difference_words(difference: Difference | None) -> str:
    """Whether a difference from the baseline is real; None: it is the baseline itself."""
    if difference is None:
        return "baseline"
    if not difference.decidable:
        have = counted(difference.num_repeats, "repeat")
        return f"cannot be decided with {have}; {difference.repeats_needed} would do"
    return f"{'real' if difference.is_shown else 'not shown'} (p = {difference.p_value:.2g})"


def mismatch_words(mismatch: Mismatch) -> str:
    """What a group and its baseline differ in besides."""
    if mismatch.name == HOST:
        return "on another host than the baseline"
    if mismatch.name == "lap":
        return f"a lap is {mismatch.here} here, {mismatch.there} there"
    name = "data checksum" if mismatch.name == "checksum" else mismatch.name
    here, there = truncate_distinctly((mismatch.here, mismatch.there), _LONGEST)
    return f"{name} {here}, baseline {there}"


def missing_baseline_words(family: Family) -> str:
    """What a family lacks for a speedup, and the command that would give it."""
    first = family.points[0].group.first
    command = command_with_one_rank(first.command) if first.record.is_laptime_training else ""
    largest = family.points[-1].group
    what = f"no run with one rank to compare {_with_ranks_in_words(largest)} with"
    return f"{what}. Run: {command}" if command else what + "."


def _with_ranks_in_words(group: Group) -> str:
    """The label of a group, of a training that is not Laptime's own with `2 ranks` for `ws=2`."""
    rest = without_ranks(group.label)
    if group.first.record.is_laptime_training or rest == group.label:
        return group.label
    return f"{counted(group.world_size, 'rank')}{f' ({rest})' if rest else ''}"


def _now_words(mismatch: Mismatch) -> str:
    return f"{'a lap is' if mismatch.name == 'lap' else mismatch.name} {mismatch.here}"


def check_words(check: Check) -> str:
    """A line of the gate."""
    remarks = [f"{_now_words(each)}, then {each.there}" for each in check.mismatches]
    if check.change is None and not check.mismatches:
        remarks.append("no completed run of it now")
    if not check.names_machine:
        remarks.append("the kept summary does not say which machine it is of")
    interval = f" ({check.interval.low:.3f} to {check.interval.high:.3f})" if check.interval else ""
    change = "not compared" if check.change is None else f"{check.change:.3f} x the kept throughput{interval}"
    remark = f"; {'; '.join(remarks)}" if remarks else ""
    return f"gate: {check.verdict.value:7} {check.group}: {change}{remark}"


def times(ratio: float) -> str:
    """A ratio for people: 1.34 times."""
    return f"{ratio:.2f} times"


def interval_words(interval: Interval | None, num_repeats: int) -> str:
    """An interval for people."""
    if interval is None:
        return "one repeat: no interval"
    kind = "95% interval" if num_repeats >= MIN_REPEATS else f"interval of {num_repeats} repeats"
    return f"{kind} {interval.low:.2f} to {interval.high:.2f}"


def source_of_steps(groups: Iterable[Group]) -> str:
    """Which steps the parts of a step come from."""
    own, warmup = "separate steps after the timed epochs (measure.breakdown)", "steps of the warm-up lap"
    is_own = {group.first.record.is_laptime_training for group in groups}
    if is_own == {True, False}:
        return f"{own}; of trainings that are not Laptime's own, from {warmup}"
    return own if True in is_own else warmup
