"""Trainings that Laptime only timed: their results and settings."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from laptime.analysis.__main__ import main
from laptime.analysis.analyze import analyze
from laptime.analysis.answer import answer
from laptime.analysis.conditions import differing_settings, without_torchruns
from laptime.analysis.gate import check
from laptime.analysis.groups import group_runs
from laptime.analysis.labels import truncate_distinctly
from laptime.analysis.load import load_runs
from laptime.analysis.mismatch import Mismatch
from laptime.analysis.remarks import remarks_of
from laptime.analysis.results import Agreement, Shift, Verdict
from laptime.analysis.wording import agreement_words, mismatch_words

pytestmark = pytest.mark.unit

Values = list[float | None]
TORCHRUNS = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}


@pytest.fixture
def learned(write_timed, work_folder) -> Callable[..., Agreement | None]:
    """learned(test accuracies, validation accuracies, size of the test set): each as (baseline's, group's)."""

    def agreement(test: tuple[Values, Values], val: tuple[Values, Values], num_test: int = 0) -> Agreement | None:
        for name, lr, tests, vals in zip("ab", (0.1, 0.2), test, val, strict=True):
            for seed, (test_accuracy, val_accuracy) in enumerate(zip(tests, vals, strict=True)):
                result = {"test_accuracy": test_accuracy, "val_accuracy": val_accuracy, "train_loss": None}
                sections = {"result": result, "dataset": {"name": "data", "num_test": num_test}}
                write_timed(Path(f"{name}{seed}"), [9.0, 1.0], {"lr": lr}, seed=seed, sections=sections)
        return analyze([Path()]).comparisons[0].rows[1].agreement

    return agreement


NONE: Values = [None, None, None]


@pytest.mark.parametrize(
    ("test", "val", "words"),
    [
        (([0.97, 0.96, 0.97], [0.87, 0.86, 0.87]), (NONE, NONE), "differs: test accuracy -10.00 points"),
        (([0.97, 0.95, 0.96], [0.95, 0.95, 0.96]), (NONE, NONE), "agrees"),
        ((NONE, NONE), ([0.97, 0.96, 0.97], [0.87, 0.86, 0.87]), "differs: validation accuracy -10.0 points"),
        ((NONE, NONE), ([0.97, 0.97, 0.97], [0.9696] * 3), "differs: validation accuracy -0.04 points"),
        ((NONE, NONE), ([0.97, 0.95, 0.96], [0.95, 0.95, 0.96]), "agrees"),
        ((NONE, NONE), (NONE, NONE), "accuracy not measured"),
        (([0.97, 0.96, 0.97], NONE), ([0.9] * 3, [0.1] * 3), "differs: 3 of 3 repeats have no test accuracy"),
    ],
)  # fmt: skip
def test_without_the_size_of_the_test_set_the_repeats_decide(test, val, words, learned):
    assert agreement_words(learned(test, val)) == words


def test_one_repeat_each_is_inconclusive(learned):
    result = learned(([0.97], [0.87]), ([None], [None]))
    assert result == Agreement(Verdict.UNKNOWN, (Shift("test_score", pytest.approx(-0.1)),))
    assert agreement_words(result) == "inconclusive with one repeat each: test accuracy -10.00 points"
    assert answer(analyze([Path()])).endswith("; test accuracy -10.00 points (one repeat each: inconclusive).")


def test_validation_accuracies_of_one_repeat_each_are_inconclusive(learned):
    words = "inconclusive with one repeat each: validation accuracy -10.0 points"
    assert agreement_words(learned(([None], [None]), ([0.97], [0.87]))) == words


def test_a_known_size_of_the_test_set_decides(learned):
    assert agreement_words(learned(([0.97], [0.969]), ([None], [None]), 10_000)) == "agrees"


# Settings.


@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        (["A=1 B=2", "A=1 B=3"], ["B=2", "B=3"]),
        (["A=1 B=2", "B=2"], ["A=1", "none"]),
        (["", "threads=3"], ["none", "threads=3"]),
        (["A=x y B=2", "A=x z B=2"], ["A=x y", "A=x z"]),
        (["A=1 python -X dev=on", "A=1"], ["python -X dev=on", "none"]),
        (["A=--x=1 --y=2", "A=--x=1 --y=3"], ["A=--x=1 --y=2", "A=--x=1 --y=3"]),
        ([], []),
    ],
)
def test_settings_that_all_groups_share_are_omitted(texts, shown):
    assert differing_settings(texts) == shown


def test_different_texts_stay_different_when_truncated():
    assert truncate_distinctly(["abcd", "abce", "xyz", "xyz12345"], 3) == ["abcd", "abce", "xyz", "xyz12345"]
    assert truncate_distinctly(["abcd", "abcd", "xyz123"], 3) == ["abc", "abc", "xyz"]


def test_labels_and_mismatches_show_the_settings_that_differ(write_timed, work_folder):
    shared = {f"NCCL_{number}": "a long value that all groups have" for number in range(3)}
    for lr, settings in ((0.1, {}), (0.2, {"TORCH_LOGS": "x" * 70 + "1"}), (0.3, {"TORCH_LOGS": "x" * 70 + "2"})):
        write_timed(Path(str(lr)), [9.0, 1.0], {"lr": lr}, sections={"environment": {"settings": shared | settings}})
    analysis = analyze([Path()])
    assert [group.label for group in analysis.groups] == [
        "lr=0.1 settings=none", f"lr=0.2 settings=TORCH_LOGS={'x' * 70}1", f"lr=0.3 settings=TORCH_LOGS={'x' * 70}2",
    ]  # fmt: skip
    rows = analysis.comparisons[0].rows
    assert rows[1].mismatches == (Mismatch("settings", f"TORCH_LOGS={'x' * 70}1", "none"),)
    assert f"settings TORCH_LOGS={'x' * 49}, baseline none" in remarks_of(rows[1].group, rows[1].mismatches)
    differing = Mismatch("settings", "A=" + "x" * 70 + "1", "A=" + "x" * 70 + "2")
    assert mismatch_words(differing) == f"settings {differing.value}, baseline {differing.baseline}"


def test_variables_that_torchrun_sets_do_not_split_groups(write_timed, work_folder):
    for seed, settings in enumerate(({}, TORCHRUNS, None)):
        write_timed(Path(str(seed)), [9.0, 1.0], seed=seed, sections={"environment": {"settings": settings}})
    (group,) = group_runs(load_runs([Path()])[0])
    assert len(group.runs) == 3 and group.conditions.settings == ""
    assert without_torchruns("OMP_WAIT_POLICY=active TORCH_NCCL_ASYNC_ERROR_HANDLING=1") == "OMP_WAIT_POLICY=active"


def test_the_gate_ignores_variables_that_torchrun_sets(write_timed, work_folder):
    write_timed(Path("run"), [9.0, 1.0])
    assert main(["run"]) == 0
    path = Path("run/summary/summary.json")
    summary = json.loads(path.read_text())
    summary["groups"][0]["conditions"]["settings"] = "TORCH_NCCL_ASYNC_ERROR_HANDLING=1"
    path.write_text(json.dumps(summary))
    (result,) = check(analyze([Path("run")]), path, 0.05)
    assert result.mismatches == ()
    summary["groups"][0]["conditions"]["settings"] += " TORCH_LOGS=1"
    path.write_text(json.dumps(summary))
    (result,) = check(analyze([Path("run")]), path, 0.05)
    assert result.mismatches == (Mismatch("settings", "none", "TORCH_LOGS=1"),)
