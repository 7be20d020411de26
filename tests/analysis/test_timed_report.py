"""Sentences and tables of analyses of trainings that Laptime only timed: they speak of laps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from laptime.analysis.analyze import analyze
from laptime.analysis.answer import answer, problems
from laptime.analysis.load import load_runs
from laptime.analysis.plots import plots
from laptime.analysis.report import as_html, as_markdown, as_text, caption, environment, methods
from laptime.analysis.table import Table
from laptime.analysis.tables import tables

pytestmark = pytest.mark.unit

UNKNOWN: dict[str, dict[str, Any]] = {
    "dataset": {"name": "tensordataset", "num_test": 0, "checksum": None},
    "git": {"commit": None},
    "result": {"test_accuracy": None, "val_accuracy": None, "train_loss": None},
    "lap": {"timer": "LapTimer", "contents": "with the callbacks and the logging between its batches"},
}
STEPS = {"timing": {"steps_per_s": 100.0}}


@pytest.fixture
def timed(write_timed, work_folder) -> Callable[..., None]:
    """timed(path, times, settings, sections): write a run with little information apart from its times."""

    def write_one(
        path: str, times_s: list[float], settings: dict[str, Any] | None = None, *, world_size: int = 1,
        seed: int | None = None, sections: dict[str, dict[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        write_timed(
            Path(path), times_s, settings, world_size=world_size, seed=seed, sections=UNKNOWN | (sections or {})
        )

    return write_one


def table(title: str) -> Table:
    (shown,) = [table for table in tables(analyze([Path()])) if table.title.startswith(title)]
    return shown


def heads(shown: Table) -> list[str]:
    return [column.head for column in shown.columns]


# Methods and environment.


def test_methods_of_one_training_omit_scaling_and_separate_steps(timed):
    timed("run", [9.0, 1.0, 1.1])
    assert methods(analyze([Path()]))[1:] == (
        "A run's lap time is that of its slowest rank. Warm-up laps are not counted.",
        "Repeats are runs that differ only in the seed, on the same machine, with the same code. The data have no "
        "checksum, so the data may differ. A group's value is the median over its repeats; a repeat's value is the "
        "median over its counted laps.",
        "A lap (epoch by LapTimer): with the callbacks and the logging between its batches",
    )


def test_methods_say_in_which_steps_the_phases_were_measured(timed):
    sections = {"breakdown": {"step_s": 0.01}, "peak": {"matmul_flop_per_s": 1e9}}
    timed("run", [9.0, 1.0], sections=sections)
    words = " ".join(methods(analyze([Path()])))
    assert "MFU" in words and "The phases of a step are measured in steps of the warm-up lap." in words
    assert "separate steps" not in words and "checkpointing" not in words


def test_methods_of_a_comparison(timed):
    timed("a", [9.0, 1.0], {"lr": 0.1})
    timed("b", [9.0, 1.0], {"lr": 0.2})
    words = " ".join(methods(analyze([Path()])))
    for method in ("Speedup is throughput", "Mann-Whitney", "Results agree"):
        assert method in words
    for name in ("Karp", "Amdahl", "Gunther", "Scaling efficiency"):
        assert name not in words


def test_methods_of_a_scaling_table(timed):
    timed("1", [9.0, 1.0])
    timed("2", [9.0, 1.0], world_size=2)
    words = " ".join(methods(analyze([Path()])))
    assert "Karp and Flatt" in words and "Scaling efficiency" in words and "Mann-Whitney" not in words


def test_data_with_a_checksum_are_the_same(timed):
    same_data = {"dataset": {"name": "mnist", "num_test": 0, "checksum": "abc"}}
    timed("a", [9.0, 1.0], sections=same_data)
    assert "with the same code and data. A group's value" in " ".join(methods(analyze([Path()])))
    timed("b", [9.0, 1.0])
    assert "The data of some runs have no checksum" in " ".join(methods(analyze([Path()])))


def test_unknown_code_and_data_are_omitted(timed, write):
    timed("a", [9.0, 1.0])
    rows = dict(environment(analyze([Path("a")]))[-1][1])
    assert rows["Data"] == "tensordataset" and "Code" not in rows
    write(Path("own"), [9.0, 1.0], sections={"git": {"commit": None}, "dataset": {"checksum": None}})
    rows = dict(environment(analyze([Path("own")]))[-1][1])
    assert (rows["Data"], rows["Code"]) == ("mnist, checksum None", "commit unknown")


# Laps.


def test_epochs_that_laptime_only_timed_are_called_laps(timed):
    for seed in range(2):
        timed(f"run{seed}", [9.0, 1.3, 1.2, 1.1, 1.0], seed=seed, sections={"breakdown": {"step_s": 0.01}})
    analysis = analyze([Path()])
    assert "1.15 s per lap" in answer(analysis) and "lap time" in heads(table("Groups"))
    assert "every lap" in caption("epoch_times", analysis)
    images = plots(analysis)
    text = as_text(analysis) + as_markdown(analysis, list(images)) + as_html(analysis, {})
    left = text.replace("epoch_times.png", "").replace("epoch by LapTimer", "").replace("epochs.csv", "")
    assert "laps got faster" in left and "epoch" not in left


def test_a_run_with_only_warm_up_laps_is_skipped(timed):
    timed("run", [9.0])
    _, (skipped,) = load_runs([Path()])
    assert skipped.reason == "no lap after the warm-up"


# Tables.


def test_notes_explain_only_columns_that_are_shown(timed):
    timed("run", [9.0, 1.0], sections={"breakdown": {"step_s": 0.01, "forward_s": 0.01}})
    steps = table("Phases of a step")
    assert heads(steps) == ["group", "ms per step", "forward"]
    assert tuple(steps.all_notes()) == (
        "The phases are from steps of the warm-up lap. Each value is the median over the repeats. Phases are in "
        "percent of the step.",
    )
    assert not any("std (" in note for note in table("Groups").all_notes())
    groups = [index for index, column in enumerate(table("Groups").columns) if column.head != "training loss"]
    assert "training loss" in table("Groups").all_notes()[1]
    assert "training loss" not in str(table("Groups").all_notes(groups))


def test_notes_explain_all_columns(timed):
    breakdown = {"step_s": 0.01, "communication_s": 0.005, "step_p50_s": 0.01, "instrument_s": 0.001}
    sections = {"breakdown": breakdown, "peak": {"mfu": 0.5}}
    for seed in range(2):
        timed(str(seed), [9.0, 1.0, 1.1], seed=seed, sections=sections)
    _, note = table("Phases of a step").all_notes()
    for head in ("comm: ", "p50 in ms.", "vs laps: ", "MFU: "):
        assert head in note
    assert all(head in table("Groups").all_notes()[1] for head in ("std (repeats)", "std (laps)"))


def test_causes_that_were_not_measured_are_omitted(timed):
    timed("1", [9.0, 1.0], sections=STEPS)
    timed("2", [9.0, 1.0], world_size=2, sections=STEPS)
    overheads = table("Where the time goes")
    assert [row.cells[0].text for row in overheads.rows] == ["ideal", "step"]
    assert overheads.notes == (
        "In parentheses: percentage of the step. The causes are only measured in trainings that Laptime runs.",
    )  # fmt: skip
    timed("4", [9.0, 1.0], world_size=4, sections=STEPS | {"communication": {"exposed_s": 0.002}})
    overheads = table("Where the time goes")
    assert [row.cells[0].text for row in overheads.rows] == ["ideal", "communication", "step"]
    assert "communication: waiting for gradients" in overheads.notes[0]


def test_a_step_without_causes_has_no_table(timed, write):
    timed("timed", [9.0, 1.0], world_size=2, sections=STEPS)
    assert not [shown for shown in tables(analyze([Path()])) if shown.title.startswith("Where the time goes")]
    write(Path("own"), [9.0, 1.0], world_size=2)
    assert [shown for shown in tables(analyze([Path("own")])) if shown.title.startswith("Where the time goes")]


def test_a_family_without_a_baseline_is_named_by_its_ranks(timed):
    timed("2", [9.0, 1.0], world_size=2)
    timed("4", [9.0, 1.0], world_size=4)
    assert problems(analyze([Path()])) == ["no one-rank run to compare 4 ranks with."]
    timed("8", [9.0, 1.0], {"lr": 0.1}, world_size=2)
    timed("9", [9.0, 1.0], {"lr": 0.2}, world_size=4)
    assert "no one-rank run to compare 4 ranks (lr=0.2) with." in problems(analyze([Path()]))


# MFU.


@pytest.mark.parametrize(
    ("mfu", "compute_mfu", "recorded", "cell", "limit"),
    [
        (0.004, 0.006, "0% of the fastest matrix product here. Of a step, backward takes 60%, at 1% of that rate",
         "0.4%", "0.4% of the fastest matrix product here. Of a step, backward takes 60%, at 0.6% of that rate"),
        (0.004, None, "0.4% of the fastest matrix product here", "0.4%", "0.4% of the fastest matrix product here"),
        (0.0097, None, "1% of the fastest matrix product here", "1%", "1% of the fastest matrix product here"),
        (0.104, 0.2, "10% of the fastest matrix product here", "10%", "10% of the fastest matrix product here"),
        (0.8, None, "near the limit: 80% of the fastest matrix product here", "80%",
         "near the limit: 80% of the fastest matrix product here"),
    ],
)  # fmt: skip
def test_a_small_mfu_has_the_same_digits_in_cell_and_verdict(mfu, compute_mfu, recorded, cell, limit, timed):
    peak = {"mfu": mfu, "compute_mfu": compute_mfu, "verdict": recorded}
    timed("run", [9.0, 1.0], sections={"breakdown": {"step_s": 0.01}, "peak": peak})
    phases = table("Phases of a step")
    cells = dict(zip(heads(phases), phases.rows[0].cells, strict=True))
    assert (cells["MFU"].text, cells["limit"].text) == (cell, limit)
