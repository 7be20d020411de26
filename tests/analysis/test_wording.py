"""The sentences for results: every value has one."""

import pytest

from laptime.analysis.gate import Check, Verdict
from laptime.analysis.mismatch import HOST, Mismatch
from laptime.analysis.results import Agreement, NoTestScore, Scatter, Shift
from laptime.analysis.results import Verdict as Learned
from laptime.analysis.statistics import Difference, Interval
from laptime.analysis.wording import agreement_words, check_words, difference_words, mismatch_words

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("agreement", "words"),
    [
        (None, ""),
        (Agreement(Learned.AGREES), "agrees"),
        (Agreement(Learned.UNKNOWN), "accuracy not measured"),
        (
            Agreement(Learned.DIFFERS, (Shift("test_score", -0.02), Shift("train_loss", 0.1), NoTestScore(2, 3))),
            "differs: test accuracy -2.00 points, training loss +0.1000, 2 of 3 repeats have no test accuracy",
        ),
        (
            Agreement(Learned.DIFFERS, (Scatter("test_score", 0.87),)),
            "differs: test accuracy varies by 87.00 points",
        ),
    ],
)
def test_agreements(agreement, words):
    assert agreement_words(agreement) == words


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (None, "baseline"),
        (Difference(1.0, False, 4, 1, 0.05), "inconclusive (needs 4 repeats)"),
        (Difference(0.1, False, 4, 3, 0.05), "inconclusive (needs 4 repeats)"),
        (Difference(0.0286, True, 4, 4, 0.05), "significant (p = 0.029)"),
        (Difference(0.06, True, 4, 4, 0.05), "not significant (p = 0.06)"),
    ],
)
def test_differences(difference, words):
    assert difference_words(difference) == words


@pytest.mark.parametrize(
    ("mismatch", "words"),
    [
        (Mismatch("code", "0ther", "c0de"), "code 0ther, baseline c0de"),
        (Mismatch("checksum", "a" * 99, "b"), f"data checksum {'a' * 60}, baseline b"),
        (Mismatch(HOST), "different host than the baseline"),
    ],
)
def test_mismatches(mismatch, words):
    assert mismatch_words(mismatch) == words


@pytest.mark.parametrize(
    ("check", "verdict", "words"),
    [
        (
            Check("ws=2", 0.5, Interval(0.4, 0.6), True),
            Verdict.FALLEN,
            "gate: fallen  ws=2: 0.500 x the baseline throughput (0.400 to 0.600)",
        ),
        (
            Check("ws=2", 1.0, None, False, (Mismatch("code", "new", "old"),), names_machine=False),
            Verdict.OK,
            "gate: ok      ws=2: 1.000 x the baseline throughput; code new, baseline old; "
            "the baseline summary does not say which machine it was measured on",
        ),
        (
            Check("ws=2", None, None, False),
            Verdict.MISSING,
            "gate: missing ws=2: not compared; no completed run of this group",
        ),
        (
            Check("ws=2", None, None, False, (Mismatch("machine", "this", "that"),)),
            Verdict.MISSING,
            "gate: missing ws=2: not compared; machine this, baseline that",
        ),
    ],
)
def test_checks_of_the_gate(check, verdict, words):
    assert check.verdict is verdict
    assert check_words(check) == words
