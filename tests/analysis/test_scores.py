"""Runs whose score is not accuracy: tables, comparisons, plots, searches and targets go by their score."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import to_builtins
from tensorboard.plugins.custom_scalar import layout_pb2

from laptime.analysis import plots as drawing
from laptime.analysis.__main__ import main
from laptime.analysis.analyze import Analysis, analyze
from laptime.analysis.answer import answer, question
from laptime.analysis.compare import Row
from laptime.analysis.report import caption, methods
from laptime.analysis.results import DifferentScores, Scatter, Shift, Verdict
from laptime.analysis.summary_tables import comparison_table, groups_table
from laptime.analysis.table import Table
from laptime.analysis.tables import tables
from laptime.analysis.tensorboard import _experiment, _layout
from laptime.analysis.wording import agreement_words
from laptime.record.files import read_epochs
from laptime.record.score import ACCURACY, BITS_PER_CHARACTER

pytestmark = pytest.mark.usefixtures("work_folder")

BPC = to_builtins(BITS_PER_CHARACTER)
# Curves of 1.9, 1.8 and 1.7 bits per character.
VALIDATION = (1.9, 1.8, 1.7)


@pytest.fixture
def write_scored(write) -> Callable[..., Path]:
    """Write a run that is scored by bits per character."""

    def write_one(name: str, test: float | None, score: Any = BPC, val: float | None = None, **other: Any) -> Path:
        result = {"score": score, "test_score": test, "val_score": val, "train_loss": None}
        result |= {"test_accuracy": None, "val_accuracy": None}
        sections = {"result": result | other.pop("result", {})} | other.pop("sections", {})
        path: Path = write(Path(name), [9.0, 1.0, 2.0], sections=sections, **other)
        rows = read_epochs(path)
        rows["val_score"], rows["val_accuracy"], rows["train_accuracy"] = VALIDATION, np.nan, np.nan
        rows.to_csv(path / "epochs.csv", index=False)
        return path

    return write_one


def write_pair(write_scored: Callable[..., Path], tests: Sequence[float], base: Sequence[float], **other: Any) -> None:
    for lr, values in ((0.1, base), (0.2, tests)):
        for seed, value in enumerate(values):
            write_scored(f"{lr}-{seed}", value, seed=seed, changed={"optimizer.lr": lr}, **other)


def compared(folders: Sequence[str] = (".",)) -> Row:
    (comparison,) = analyze([Path(folder) for folder in folders]).comparisons
    return comparison.rows[1]


def table(analysis: Analysis, title: str) -> Table:
    return next(table for table in tables(analysis) if table.title.startswith(title))


def cells(shown: Table, head: str) -> list[str]:
    index = [column.head for column in shown.columns].index(head)
    return [row.cells[index].text for row in shown.rows]


def test_tables_show_the_score_with_unit_and_direction(write_scored):
    write_pair(write_scored, [1.8, 1.9], [1.7, 1.7])
    analysis = analyze([Path()])
    groups = table(analysis, "Groups")
    assert cells(groups, "test bits per character") == ["1.700 ± 0.000", "1.850 ± 0.07071"]
    note = "test bits per character: median ± standard deviation over the repeats (bits/char, lower is better)."
    assert any(note in line for line in groups.all_notes())
    assert cells(table(analysis, "By "), "test bits per character") == ["1.700 ± 0.000", "1.850 ± 0.07071"]
    assert "%" not in "".join(cells(groups, "test bits per character"))


def test_without_a_test_the_tables_show_the_validation(write_scored):
    write_scored("a", None, val=1.75)
    assert cells(table(analyze([Path()]), "Groups"), "validation bits per character") == ["1.750"]


@pytest.mark.parametrize(
    ("tests", "base", "verdict", "words"),
    [
        ([1.80, 1.81, 1.80], [1.70, 1.71, 1.70], Verdict.DIFFERS, "differs: test bits per character +0.1000 bits/char "
         "(worse)"),
        ([1.60, 1.61, 1.60], [1.70, 1.71, 1.70], Verdict.DIFFERS, "differs: test bits per character -0.1000 bits/char "
         "(better)"),
        ([1.70, 1.71, 1.72], [1.71, 1.70, 1.72], Verdict.AGREES, "agrees"),
        # One repeat each: the size of the test set says nothing about other scores than accuracies.
        ([2.9], [1.7], Verdict.UNKNOWN, "inconclusive with one repeat each: test bits per character +1.200 bits/char "
         "(worse)"),
        # A failed repeat, which the median hides.
        ([1.70, 1.71, 6.0], [1.71, 1.70, 1.72], Verdict.DIFFERS, "differs: test bits per character varies by 4.300 "
         "bits/char"),
        # Too few repeats to know the usual spread.
        ([1.70, 6.0], [1.71, 6.2], Verdict.AGREES, "agrees"),
    ],
)  # fmt: skip
def test_scores_are_compared_by_the_spread_of_the_repeats_alone(tests, base, verdict, words, write_scored):
    write_pair(write_scored, tests, base)
    agreement = compared().agreement
    assert agreement is not None and agreement.verdict is verdict and agreement_words(agreement) == words


def test_a_difference_that_a_test_set_could_hide_is_a_difference_of_other_scores(write_scored):
    """An accuracy of 0.5 on ten images is as good as one of 0.6; a score of the same values is not."""
    for name, score in (("scores", {"name": "recall", "unit": "%", "is_maximized": True}), ("accuracies", None)):
        for lr, value in ((0.1, 0.5), (0.2, 0.6)):
            for seed in (1, 2):
                result = {"test_score": value} if score else {"test_accuracy": value, "test_score": None}
                write_scored(
                    f"{name}/{lr}-{seed}", None, score, seed=seed, changed={"optimizer.lr": lr}, result=result,
                    sections={"dataset": {"num_test": 10}},
                )  # fmt: skip
    scores, accuracies = compared(["scores"]).agreement, compared(["accuracies"]).agreement
    assert scores is not None and scores.details == (Shift("test_score", pytest.approx(0.1)),)
    assert accuracies is not None and accuracies.verdict is Verdict.AGREES


def test_accuracies_scatter_as_before(write_scored):
    write_pair(
        write_scored, [0.1, 0.97, 0.97], [0.97, 0.97, 0.97], score={"name": "accuracy", "unit": "%",
        "is_maximized": True},
    )  # fmt: skip
    agreement = compared().agreement
    assert agreement is not None and agreement.details == (Scatter("test_score", pytest.approx(0.87)),)


def test_validation_scores_are_compared_without_a_test(write_scored):
    for lr, val in ((0.1, 1.7), (0.2, 1.9)):
        for seed in (1, 2):
            write_scored(f"{lr}-{seed}", None, val=val, seed=seed, changed={"optimizer.lr": lr})
    words = "differs: validation bits per character +0.2000 bits/char (worse)"
    assert agreement_words(compared().agreement) == words


def test_a_missing_score_is_named(write_scored):
    write_pair(write_scored, [1.7, 1.7], [1.7, 1.7])
    write_scored("failed", None, seed=7, changed={"optimizer.lr": 0.2})
    assert agreement_words(compared().agreement) == "differs: 1 of 3 repeats have no test bits per character"


def test_groups_with_different_scores_are_not_compared_and_the_table_says_why(write, write_scored):
    for seed in (1, 2, 3):
        write(Path(f"a{seed}"), [9.0, 1.0], seed=seed, changed={"optimizer.lr": 0.1})
        write_scored(f"b{seed}", 1.7, seed=seed, changed={"optimizer.lr": 0.2})
    row, analysis = compared(), analyze([Path()])
    assert row.speedup > 0 and row.agreement is not None
    assert row.agreement.details == (DifferentScores((BITS_PER_CHARACTER,), (ACCURACY,)),)
    why = (
        "not compared: scored by bits per character (bits/char, lower is better), baseline by accuracy (%, higher is "
        "better)"
    )
    assert agreement_words(row.agreement) == why
    assert cells(table(analysis, "By "), "results") == ["", why]
    groups = table(analysis, "Groups")
    assert cells(groups, "test score") == ["accuracy 97.00% ± 0.00%", "bits per character 1.700 ± 0.000"]
    assert any("It is not compared: the scores are accuracy (" in note for note in groups.all_notes())
    assert "results not compared: scored by bits per character" in answer(analysis)
    assert "Runs with different scores are not compared" in methods(analysis)[-1]
    assert set(drawing.plots(analysis)) >= {"loss", "accuracy", "score"}


def test_repeats_with_different_scores_have_no_score(write_scored):
    write_scored("a", 1.7, seed=1)
    write_scored("b", 0.3, seed=2, score={"name": "perplexity", "unit": "", "is_maximized": False})
    analysis = analyze([Path()])
    (group,) = analysis.groups
    assert group.score is None and group.values("result", "test_score") == []
    groups = table(analysis, "Groups")
    assert cells(groups, "test score") == ["different scores"]
    assert (
        "the repeats have different scores, which are not compared: bits per character" in cells(groups, "remarks")[0]
    )
    assert groups_table([group])["score"].to_list() == ["bits per character and perplexity"]
    assert "score" not in drawing.plots(analysis)


def test_a_run_without_a_score_does_not_split_its_group(write_scored):
    write_scored("a", 1.7, seed=1)
    write_scored("b", None, score=None, seed=2)
    (group,) = analyze([Path()]).groups
    assert group.score == BITS_PER_CHARACTER and group.values("result", "test_score") == [1.7]


def test_plots_have_the_score_on_their_axis(write_scored, monkeypatch):
    figures = []
    monkeypatch.setattr(drawing, "_save", lambda figure: figures.append(figure) or b"")
    write_scored("a", 1.7)
    analysis = analyze([Path()])
    images = drawing.plots(analysis)
    assert "score" in images and "accuracy" not in images
    by_title = {figure.get_suptitle(): figure for figure in figures}
    axes = by_title["Bits per character (solid: validation, dashed: training)"].axes[0]
    assert axes.get_ylabel() == "bits per character (bits/char)"
    assert axes.lines[0].get_ydata().tolist() == list(VALIDATION)
    assert caption("score", analysis).startswith("Score over epochs") and caption("score_2", analysis)


def test_several_scores_have_numbered_plots(write_scored, monkeypatch):
    monkeypatch.setattr(drawing, "_save", lambda figure: b"")
    write_scored("a", 1.7)
    other = {"name": "perplexity", "unit": "", "is_maximized": False}
    write_scored("b", 3.0, other, changed={"optimizer.lr": 0.2})
    images = drawing.plots(analyze([Path()]))
    assert {"score_1", "score_2"} <= set(images) and not {"score", "accuracy"} & set(images)


@pytest.mark.parametrize(
    ("target", "shown"), [(1.8, "to 1.8 bits/char: 10 s (1 of 1)"), (1.6, "to 1.6 bits/char: never")]
)
def test_time_to_a_target_goes_by_the_direction(target, shown, write_scored):
    write_scored("a", 1.7)
    analysis = analyze([Path()], target_score=target)
    assert cells(table(analysis, "Groups"), "time to score") == [shown]
    row = groups_table(analysis.groups, analysis.target).iloc[0]
    assert row["target_score"] == target and row["target_accuracy"] is None and row["time_to_accuracy_s"] is None
    assert row["time_to_score_s"] == (10.0 if target == 1.8 else None) and row["num_reached"] == (target == 1.8)


def test_the_target_of_the_runs_is_shown(write_scored):
    write_scored("a", 1.7, config={"measure": {"target_accuracy": None, "target_score": 1.7}})
    assert cells(table(analyze([Path()]), "Groups"), "time to score") == ["to 1.7 bits/char: 12 s (1 of 1)"]


def test_a_target_score_works_for_accuracies(write):
    write(Path("a"), [9.0, 1.0, 2.0])  # validation accuracies 0.90, 0.92, 0.94
    analysis = analyze([Path()], target_score=0.92)
    assert cells(table(analysis, "Groups"), "time to accuracy") == ["to 92.0%: 10 s (1 of 1)"]
    row = groups_table(analysis.groups, analysis.target).iloc[0]
    assert (row["target_accuracy"], row["time_to_accuracy_s"]) == (0.92, 10.0)
    assert (row["target_score"], row["time_to_score_s"]) == (0.92, 10.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bpc", "--target-accuracy", "0.9"], "--target-accuracy 0.9: the score of these runs is bits per character"),
        (["acc", "--target-score", "97"], "--target-score 97.0: must be a fraction"),
        (["acc", "bpc", "--target-score", "0.9"], "--target-score 0.9: these runs have different scores: "),
        (["bpc", "--target-score", "nan"], "--target-score nan: must be a finite number."),
        (["acc", "--target-score", "0.9", "--target-accuracy", "0.9"], "--target-score 0.9: can't be combined"),
    ],
)
def test_a_target_that_would_have_no_effect_is_refused(arguments, words, write, write_scored, capsys):
    write(Path("acc"), [9.0, 1.0])
    write_scored("bpc", 1.7, changed={"optimizer.lr": 0.2})
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {words}")
    assert not Path("acc/summary").exists() and not Path("bpc/summary").exists()


def test_a_target_accuracy_applies_to_the_runs_of_accuracy(write, write_scored):
    write(Path("acc"), [9.0, 1.0, 2.0])
    write_scored("bpc", 1.7, changed={"optimizer.lr": 0.2})
    shown = cells(table(analyze([Path()], target_accuracy=0.92), "Groups"), "time to score")
    assert shown == ["to 92.0%: 10 s (1 of 1)", ""]


def test_csv_files_have_the_score(write_scored):
    write_pair(write_scored, [1.8, 1.8], [1.7, 1.7])
    analysis = analyze([Path()])
    groups, rows = groups_table(analysis.groups), comparison_table(analysis.comparisons)
    assert groups[["score", "test_score"]].to_numpy().tolist() == [
        ["bits per character", 1.7],
        ["bits per character", 1.8],
    ]
    assert groups["test_accuracy"].isna().all()
    assert rows["score"].to_list() == ["bits per character"] * 2 and rows["test_score"].to_list() == [1.7, 1.8]


@pytest.mark.parametrize(("score", "best"), [(BITS_PER_CHARACTER, 1.6), (ACCURACY, 1.9)])
def test_a_search_goes_by_the_direction_of_the_score(score, best, write_scored):
    for number, value in enumerate((1.7, 1.6, 1.9)):
        write_scored(
            str(number), None, to_builtins(score), val=value, changed={"optimizer.lr": number + 1},
            config={"measure": {}, "optimized_metric": ["val_score", "epoch_time_s"]},
            sections={"timing": {"epoch_time_s": 1.0}},
        )  # fmt: skip
    analysis = analyze([Path()])
    (search,) = analysis.searches
    assert [search.values[index][0] for index in search.front] == [best]
    assert search.titles == [f"val_score ({score.name})", "epoch_time_s"]
    assert question(analysis) == f"What is best in val_score ({score.name}) and epoch_time_s?"


def test_groups_with_different_scores_are_in_different_searches(write, write_scored):
    config = {"measure": {}, "optimized_metric": ["val_score", "epoch_time_s"]}
    timing = {"timing": {"epoch_time_s": 1.0}}
    for number in (1, 2):
        write_scored(f"a{number}", None, val=1.0, changed={"optimizer.lr": number}, config=config, sections=timing)
        write(Path(f"b{number}"), [9.0, 1.0], changed={"optimizer.lr": -number}, config=config, sections=timing)
    assert {search.score for search in analyze([Path()]).searches} == {ACCURACY, BITS_PER_CHARACTER}


def test_tensorboard_goes_by_the_scores(write, write_scored):
    write(Path("acc"), [9.0, 1.0])
    write_scored("bpc", 1.7, changed={"optimizer.lr": 0.2})
    analysis = analyze([Path()])
    layout = layout_pb2.Layout.FromString(_layout([ACCURACY, BITS_PER_CHARACTER]).tensor.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for chart in layout.category[2].chart}
    assert charts["accuracy"] == ["^train/accuracy$", "^val/accuracy$"]
    assert charts["bits per character"] == ["^train/bits_per_character$", "^val/bits_per_character$"]
    content = str(_experiment(analysis))
    assert "hparam/val_bits_per_character" in content and "hparam/test_accuracy" in content
