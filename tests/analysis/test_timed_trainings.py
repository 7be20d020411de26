"""Trainings that Laptime only timed: their laps, seeds, tokens and settings."""

import json
import math
from pathlib import Path

import pytest

import laptime
from laptime.analysis.__main__ import main
from laptime.analysis.analyze import analyze
from laptime.analysis.answer import answer
from laptime.analysis.group import Group
from laptime.analysis.groups import group_runs
from laptime.analysis.labels import differing_keys, value_of
from laptime.analysis.load import load_runs
from laptime.analysis.mismatch import differing_conditions
from laptime.analysis.overheads import Overheads
from laptime.analysis.remarks import remarks_of
from laptime.analysis.report import METHODS, caption, methods
from laptime.analysis.summary_tables import groups_table
from laptime.analysis.tables import tables
from laptime.analysis.wording import mismatch_words
from laptime.record.epochs import NEW_COLUMNS
from laptime.record.files import EPOCHS_FILE, SCORE_COLUMNS

pytestmark = pytest.mark.unit

LAP_TIMER = {"timer": "LapTimer"}
LAPS_OF_20 = {"unit": "batches", "num_batches": 20, "timer": "LapTimer"}


def groups() -> list[Group]:
    return group_runs(load_runs([Path()])[0])


def test_a_timed_training_counts_with_any_settings(write_timed, work_folder):
    settings = {"training.epochs": "many", "layers": [1, 2], "nested": {"a": None}, "none": None}
    write_timed(Path("run"), [9.0, 1.0, 1.0], settings)
    (group,) = groups()
    assert group.label == "mnistlitmodule on mnistdatamodule"
    assert remarks_of(group) == ["one repeat: no interval"]
    assert main(["run"]) == 0
    row = json.loads(Path("run/summary/summary.json").read_text())["tables"]["runs"][0]
    assert (row["seed"], row["lap"]) == (None, "epoch by LapTimer")


@pytest.mark.parametrize("config", [None, {}, {"training": None, "measure": []}, {"training": {"epochs": 7}}])
def test_settings_with_the_names_of_laptime_keys_are_not_mistaken_for_them(config, write_timed, work_folder):
    write_timed(Path("run"), [9.0, 1.0], config=config, sections={"result": {"stop_reason": "epochs"}})
    (run,), skipped = load_runs([Path()])
    assert run.remarks == () and not skipped
    assert len(laptime.load("run").runs) == 1


def test_settings_distinguish_groups(write_timed, work_folder):
    for number, settings in enumerate(({"model": "small", "x": [1]}, {"model": "large", "x": [1]}, {"x": {"b": 1}})):
        write_timed(Path(str(number)), [9.0, 1.0], settings | {"experiment": number, "optimizer": "sgd"})
    compared = groups()
    assert set(differing_keys(compared)) == {"experiment"} and len({group.label for group in compared}) == 3
    assert {value_of(group, "model") for group in compared} == {"small", "large", "mnistlitmodule"}
    assert {value_of(group, "x") for group in compared} == {"[1]", "{'b': 1}"}
    assert {value_of(group, "optimizer") for group in compared} == {"sgd"}
    assert {value_of(group, "scheduler") for group in compared} == {"none"}
    assert {value_of(group, "absent") for group in compared} == {"null"}


def test_a_setting_with_the_name_of_a_figure_gets_a_prefix(write_timed, work_folder):
    write_timed(Path("run"), [9.0, 1.0], {"run": "mine", "world_size": 8})
    (row,) = laptime.load("run").runs.to_dict("records")
    assert (row["run"], row["config.run"], row["world_size"], row["config.world_size"]) == ("run", "mine", 1, 8)
    assert row["device"] == "cpu" and row["seed"] is None


# Seeds.


def test_a_repeat_without_a_seed_counts_as_a_seed_of_its_own(write_timed, work_folder):
    for name, seed, accuracy in (("c", None, 0.7), ("a", None, 0.9), ("b", 0, 0.8), ("d", 0, 0.8)):
        write_timed(Path(name), [9.0, 1.0], seed=seed, sections={"result": {"test_accuracy": accuracy}})
    (group,) = groups()
    assert [str(run.path) for run in group.runs] == ["b", "d", "a", "c"]
    assert "2 repeats have only 1 seed: check that their settings are the same" in remarks_of(group)
    assert group.num_seeds == 3 and sorted(group.values("result", "test_accuracy")) == [0.7, 0.8, 0.9]
    assert "unknown seed in 2 of 4 repeats: they may have had the same seed" in remarks_of(group)
    assert groups_table([group])["seeds"].to_list() == ["0 0"]
    assert laptime.load(".").runs["seed"].isna().sum() == 2


def test_runs_of_laptime_have_a_seed(write, work_folder):
    write(Path("run"), [9.0, 1.0], seed=None)
    _, (skipped,) = load_runs([Path()])
    assert "run.json has no seed" in skipped.reason


# Laps.


def test_the_laps_of_old_records_are_epochs(write, work_folder):
    write(Path("old"), [9.0, 1.0], lap=None)
    write(Path("new"), [9.0, 1.0], seed=2)
    (group,) = groups()
    assert len(group.runs) == 2 and group.conditions.lap == "epoch"


@pytest.mark.parametrize(
    ("lap", "words"),
    [
        (LAP_TIMER, "epoch by LapTimer"),
        (LAPS_OF_20, "20 batches by LapTimer"),
        (LAPS_OF_20 | {"num_batches": 1}, "1 batch by LapTimer"),
        ({"timer": "laps"}, "epoch by laps"),
    ],
)
def test_laps_of_different_units_are_groups_of_their_own_and_labels_say_so(lap, words, write, work_folder):
    write(Path("own"), [9.0, 1.0])
    write(Path("timed"), [9.0, 1.0], seed=2, sections={"lap": lap})
    assert {group.label for group in groups()} == {"lap=epoch", f"lap={words}"}


def test_a_comparison_of_different_laps_says_so(write, work_folder):
    write(Path("0"), [9.0, 1.0], sections={"lap": LAPS_OF_20})
    write(Path("1"), [9.0, 1.0], sections={"lap": LAPS_OF_20 | {"num_batches": 50}}, changed={"optimizer.lr": 0.1})
    group, baseline = sorted(groups(), key=lambda group: str(group.first.path))
    (mismatch,) = differing_conditions(group, baseline)
    words = "lap: 20 batches by LapTimer, baseline 50 batches by LapTimer"
    assert mismatch_words(mismatch) == words
    (comparison,) = analyze([Path()]).comparisons
    assert "lap: 50 batches by LapTimer" in " ".join(
        remarks_of(comparison.rows[1].group, comparison.rows[1].mismatches)
    )


def test_laps_of_batches_are_called_laps(write, work_folder):
    for seed in range(3):
        write(Path(str(seed)), [9.0, 1.3, 1.2, 1.1, 1.0], seed=seed, sections={"lap": LAPS_OF_20})
    analysis = analyze([Path()])
    assert "1.15 s per lap" in answer(analysis)
    assert "lap time" in [column.head for column in tables(analysis)[0].columns]
    assert any(
        "laps got faster by 26% from the first to the last: raise warmup_laps" in remark
        for remark in remarks_of(groups()[0])
    )


def test_methods_say_what_a_lap_contains(write, work_folder):
    write(Path("own"), [9.0, 1.0])
    assert methods(analyze([Path()])) == tuple(sentence.format(lap="epoch") for sentence in METHODS)
    write(Path("timed"), [9.0, 1.0], sections={"lap": LAPS_OF_20 | {"contents": "no validation"}})
    assert methods(analyze([Path()]))[-1] == "A lap (20 batches by LapTimer): no validation"


# Samples and tokens.


def test_a_run_whose_samples_were_not_counted_is_skipped(write_timed, work_folder):
    write_timed(Path("run"), [9.0, 1.0], num_samples=None)
    _, (skipped,) = load_runs([Path()])
    assert skipped.reason == "samples were not counted (pass samples= to LapTimer)"


def test_tokens_are_shown_where_all_groups_have_them(write, work_folder, capsys):
    write(Path("0"), [9.0, 1.0], sections={"timing": {"tokens_per_s": 123_456.0}})
    assert "1,000 samples/s, 123,456 tokens/s, 1 s per epoch" in answer(analyze([Path()]))
    write(Path("1"), [9.0, 0.5], 2, sections={"timing": {"tokens_per_s": 240_000.0}})
    analysis = analyze([Path()])
    shown = [table for table in tables(analysis) if "tokens/s" in [column.head for column in table.columns]]
    assert [table.title.partition(" ")[0] for table in shown] == ["Groups", "Scaling"]
    assert groups_table(analysis.groups)["tokens_per_s"].to_list() == [123_456.0, 240_000.0]
    assert laptime.load(".").runs["tokens_per_s"].to_list() == [123_456.0, 240_000.0]
    write(Path("2"), [9.0, 0.5], changed={"optimizer.lr": 0.1})
    assert not any("tokens/s" in [column.head for column in table.columns] for table in tables(analyze([Path()])))


# Files.


def test_epochs_csv_of_an_older_version_is_read(write, work_folder):
    path = write(Path("run"), [9.0, 1.0, 2.0]) / EPOCHS_FILE
    lines = [line.split(",") for line in path.read_text().splitlines()]
    path.write_text("\n".join(",".join(line[: -len(NEW_COLUMNS)]) for line in lines) + "\n")
    (run,), skipped = load_runs([Path()])
    assert run.epochs["epoch_time_s"].to_list() == [9.0, 1.0, 2.0] and not skipped and run.remarks == ()
    epochs = laptime.load("run").epochs
    assert epochs[[name for name in NEW_COLUMNS if name not in SCORE_COLUMNS]].isna().all(axis=None)
    for score, accuracy in SCORE_COLUMNS.items():  # in such a file, accuracy is the score
        assert epochs[score].notna().all() and epochs[score].equals(epochs[accuracy])


def test_a_record_with_reasons_for_missing_figures_is_loaded(write_timed, work_folder):
    write_timed(Path("run"), [9.0, 1.0], missing={"breakdown": "no warm-up", "peak.mfu": "no count"})
    results = laptime.load("run")
    assert len(results.runs) == 1 and math.isnan(results.runs["flops_per_batch"].astype(float)[0])


def test_a_copy_of_a_timed_training_counts_once(write_timed, work_folder):
    started = {"started_at": "2026-11-30T10:00:00+00:00", "config_hash": "c"}
    for name in ("a", "b"):
        write_timed(Path(name), [9.0, 1.0], **started, sections={"strategy": {"rank_pids": [7]}})
    write_timed(Path("c"), [9.0, 1.0], **started, sections={"strategy": {"rank_pids": [7]}, "lap": LAPS_OF_20})
    runs, (skipped,) = load_runs([Path()])
    assert [str(run.path) for run in runs] == ["a", "c"] and skipped.reason == "a copy of a"


# Ranks.


def test_timed_trainings_that_differ_in_their_ranks_scale(write_timed, work_folder):
    write_timed(Path("one"), [9.0, 1.0, 1.0])
    write_timed(Path("two"), [9.0, 1.25, 1.25], world_size=2)
    (family,) = analyze([Path()]).families
    assert [(point.world_size, point.speedup) for point in family.points] == [(1, 1.0), (2, pytest.approx(1.6))]
    assert family.kind == "weak" and family.points[1].mismatches == ()


def test_captions_and_notes_name_the_steps_of_the_warm_up_lap(write_timed, write, work_folder):
    breakdown = {"breakdown": {"step_s": 0.01, "forward_s": 0.01}}
    write_timed(Path("timed"), [9.0, 1.0], sections=breakdown)
    analysis = analyze([Path()])
    note = "The phases are from steps of the warm-up lap. Each value"
    assert any(text.startswith(note) for table in tables(analysis) for text in table.notes)
    assert caption("steps", analysis) == "Phases of a step, from steps of the warm-up lap."
    write(Path("own"), [9.0, 1.0], sections=breakdown)
    both = (
        "separate steps after the timed epochs (measure.breakdown); in trainings that Laptime only timed, from steps "
        "of the warm-up lap"
    )
    analysis = analyze([Path()])
    assert any(
        text.startswith(f"The phases are from {both}. Each value") for table in tables(analysis) for text in table.notes
    )
    assert caption("steps", analysis) == f"Phases of a step, from {both}."


def test_waiting_for_gradients_in_the_warm_up_is_communication(write_timed, work_folder):
    steps = {"timing": {"steps_per_s": 100.0}}
    write_timed(Path("one"), [9.0, 1.0, 1.0], sections=steps)
    steps = {"timing": {"steps_per_s": 80.0}, "communication": {"exposed_s": 0.002}}
    write_timed(Path("two"), [9.0, 1.25, 1.25], world_size=2, sections=steps)
    analysis = analyze([Path()])
    assert analysis.families[0].points[1].overheads == Overheads(ideal=0.01, communication=0.002, step=0.0125)
    table = next(shown for shown in tables(analysis) if shown.title.startswith("Where the time goes"))
    (cells,) = [row.cells for row in table.rows if row.cells[0].text == "communication"]
    assert cells[2].text == "2.00 (16%)"
    assert "in steps of the warm-up lap" in table.notes[0] and "measure.breakdown" not in table.notes[0]


def test_a_missing_baseline_of_a_timed_training_has_no_command(write_timed, work_folder, capsys):
    write_timed(Path("two"), [9.0, 1.25], world_size=2)
    assert main(["two"]) == 2
    assert capsys.readouterr().err == "error: no one-rank run to compare mnistlitmodule on mnistdatamodule with.\n"


def test_laps_of_different_lengths_are_different_families(write_timed, work_folder):
    for number, lap in enumerate((LAP_TIMER, LAPS_OF_20)):
        write_timed(Path(f"{number}/1"), [9.0, 1.0], sections={"lap": lap})
        write_timed(Path(f"{number}/2"), [9.0, 1.25], world_size=2, sections={"lap": lap})
    scaled = analyze([Path()]).families
    assert len(scaled) == 2
    for family in scaled:
        assert len({point.group.conditions.lap for point in family.points}) == 1
