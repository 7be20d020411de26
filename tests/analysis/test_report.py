"""The files of summary/: tables, reports, plots and TensorBoard events."""

import csv
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from laptime.analysis.__main__ import main
from laptime.analysis.analyze import analyze
from laptime.analysis.answer import answer, question
from laptime.analysis.report import as_html, as_markdown, as_text
from laptime.analysis.write import write_reports, write_tables

# Only the plots of the fixture `summary` are rendered.
pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("unrendered")]
EVIL = "<script>alert('x')</script>|`*_"


def test_the_summary_has_all_its_files(summary):
    files = {
        str(path.relative_to(summary)) for path in summary.rglob("*") if path.is_file() and "events" not in path.name
    }
    tables = {f"{name}.csv" for name in ("runs", "groups", "scaling", "devices", "comparisons")}
    reports = {"summary.json", "report.md", "report.html", "report.txt"}
    names = ("speedup", "efficiency", "overheads", "throughput", "epoch_times", "loss", "accuracy", "resources")
    assert files == tables | reports | {f"plots/{name}.png" for name in names}


def test_tables_hold_every_run_and_the_figures(summary):
    runs = list(csv.DictReader((summary / "runs.csv").open()))
    assert len(runs) == 9 and {run["world_size"] for run in runs} == {"1", "2", "4"}
    assert {run["samples_per_s"] for run in runs} == {""}  # not measured: empty, never 0
    scaling = list(csv.DictReader((summary / "scaling.csv").open()))
    assert [float(row["speedup"]) for row in scaling[:3]] == pytest.approx([1.0, 1.8, 3.0])
    assert [row["projected"] for row in scaling] == ["False"] * 3 + ["True"] * 2


def test_summary_is_json_with_the_answer_fits_and_tables(summary):
    content = json.loads((summary / "summary.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert content["question"] == "How does this training scale to 1, 2 and 4 ranks?"
    assert "2 ranks train at 1.80 times the speed of one process (interval of 3 repeats" in content["answer"]
    assert "4 ranks at 3.00 times" in content["answer"] and "Fastest: 4 ranks." in content["answer"]
    assert {fit["law"] for fit in content["fits"]} == {"amdahl", "usl"}
    assert [row["world_size"] for row in content["tables"]["scaling"]] == [1, 2, 4, 8, 16]
    assert len(content["groups"][0]["samples_per_s"]) == 3


def test_plots_are_images_that_show_data(summary):
    halves = ("loss", "accuracy", "resources")  # two plots side by side
    for path in (summary / "plots").glob("*.png"):
        with Image.open(path) as image:
            assert image.width >= 700 and image.height >= 250, path
            pixels = np.asarray(image.convert("RGB")).astype(int)
        for part in np.array_split(pixels, 2, axis=1) if path.stem in halves else [pixels]:
            # Axes, grid, text and the ideal line are gray. Only data are colored.
            colored = np.ptp(part, axis=2) > 60
            height = len(colored) // 8 * 7  # without the legend
            assert colored[:height].sum() > 100, path


def test_text_markdown_and_html_have_the_same_content(scaled):
    analysis = analyze([scaled])
    for report in (as_text(analysis), as_markdown(analysis, []), as_html(analysis, {})):
        for words in (question(analysis), "3.00", "75.0%", "Amdahl", "8 (projected)", "strategy.world_size=4", "a CPU"):
            assert words in report.replace("\\_", "_"), words


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def test_html_is_self_contained(summary):
    parser = _Elements()
    parser.feed((summary / "report.html").read_text())
    links = [attrs[name] for _, attrs in parser.elements for name in ("src", "href") if name in attrs]
    assert len(links) == 9 and all(str(link).startswith("data:") for link in links)
    assert not [tag for tag, _ in parser.elements if tag in ("script", "iframe", "object")]


def test_texts_from_configurations_and_paths_are_escaped(write, work_folder):
    folder = Path("<b>sweep&")
    write(folder / "a", [9.0, 1.0], changed={"x.name": EVIL}, sections={"model": {"name": EVIL}})
    write(folder / "b", [9.0, 1.0], changed={"x.name": "plain"}, status="failed", error={"message": EVIL})
    write(folder / "c", [9.0, 1.0], changed={"x.name": "plain"}, command=["python", EVIL])
    assert main([str(folder)]) == 0
    html = (folder / "summary" / "report.html").read_text()
    assert "<script" not in html and "<b>sweep" not in html
    assert "&lt;script&gt;" in html
    markdown = (folder / "summary" / "report.md").read_text()
    table = [line for line in markdown.splitlines() if line.startswith("|") and "script" in line]
    assert table and all("<script" not in line and "\\|" in line for line in table)


@pytest.fixture(scope="module")
def events(summary) -> dict[str, EventAccumulator]:
    folder = summary / "tensorboard"
    by_rank = {path.parent.name: EventAccumulator(str(path.parent)) for path in folder.rglob("events*")}
    for accumulator in by_rank.values():
        accumulator.Reload()
    return by_rank


def test_tensorboard_has_the_scaling_and_the_ideal_line(events):
    speedups = {
        name: [(e.step, e.value) for e in events[name].Scalars("scaling/speedup")] for name in ("measured", "ideal")
    }
    assert speedups["ideal"] == [(1, 1.0), (2, 2.0), (4, 4.0)]
    assert [step for step, _ in speedups["measured"]] == [1, 2, 4]
    assert [value for _, value in speedups["measured"]] == pytest.approx([1.0, 1.8, 3.0])
    assert [e.value for e in events["measured"].Scalars("scaling/efficiency")] == pytest.approx([1.0, 0.9, 0.75])


def test_tensorboard_has_the_plots_and_a_layout(events):
    assert "plots/speedup" in events["plots"].Tags()["images"]
    assert events["plots"].Images("plots/speedup")[0].encoded_image_string.startswith(b"\x89PNG")
    (event,) = events["plots"].Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == ["scaling", "speed", "learning"]


def test_a_second_report_replaces_the_first(scaled):
    assert main([str(scaled)]) == main([str(scaled)]) == 0
    assert len(list((scaled / "summary" / "tensorboard").rglob("events*"))) == 3


def test_a_single_run_is_reported(write, work_folder, capsys):
    write(Path("run"), [9.0, 1.0])
    assert main(["run"]) == 0
    shown = capsys.readouterr().out
    assert "mlp on mnist: 1,000 samples/s, 1 s per epoch (median of 1 run)." in shown
    assert (Path("run") / "summary" / "report.html").exists()


def test_a_folder_without_completed_runs_is_an_error(work_folder, capsys):
    Path("empty").mkdir()
    assert main(["empty"]) == 2
    assert "no completed run in or below empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["sweep", "--baseline", "cpu"], "--baseline cpu: must be key=value"),
        (["sweep", "--baseline", "device=cuda"], "--baseline device=cuda: no completed run has this value"),
        (["sweep", "--by", "color"], "--by color: "),
        (["sweep", "--by", "precision"], "--by precision: "),
        (["sweep", "--project", "-1"], "--project -1"),
        (["sweep", "--target-accuracy", "97"], "--target-accuracy 97.0: "),
        (["sweep", "--tolerance", "5"], "--tolerance 5.0: "),
        (["sweep", "--gate", "nowhere.json"], "--gate nowhere.json: can't be read"),
        (["latest"], "latest: there is no sweep in multirun/"),
    ],
)
def test_mistakes_get_one_line(arguments, words, scaled, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and words in error[0]
    assert not (scaled / "summary").exists()


def test_a_missing_baseline_is_an_error_with_the_command_and_the_rest_is_reported(write, work_folder, capsys):
    for world_size in (2, 4):
        write(Path(f"sweep/{world_size}"), [9.0, 1.0], world_size)
    assert main(["sweep"]) == 2
    assert "python train.py -m strategy.world_size=1" in capsys.readouterr().err
    assert "no baseline" in (Path("sweep") / "summary" / "report.md").read_text()


def test_figures_of_a_table_are_consistent(write, work_folder):
    for seed, times in enumerate(([9.0, 0.2, 4.0], [9.0, 2.0, 1.0], [9.0, 3.0, 3.0])):
        write(Path(f"a{seed}"), times, seed=seed)
        write(Path(f"b{seed}"), [time / 2 for time in times], seed=seed, changed={"training.precision": "bf16-mixed"})
    (comparison,) = analyze([Path()]).comparisons
    slow, fast = (row.group for row in comparison.rows)
    assert slow.samples_per_s.median * slow.epoch_time_s.median == pytest.approx(1000)
    ratio = slow.epoch_time_s.median / fast.epoch_time_s.median
    assert comparison.rows[1].speedup == pytest.approx(ratio) == pytest.approx(2.0)


def test_a_baseline_without_differing_groups_is_accepted(write, work_folder):
    write(Path("sweep/a"), [9.0, 1.0])
    write(Path("sweep/b"), [9.0, 1.0], changed={"training.precision": "bf16-mixed"})
    assert main(["sweep", "--baseline", "device=cpu", "--by", "precision"]) == 0
    devices = pd.read_csv(Path("sweep/summary/devices.csv"))
    assert devices.empty and "speedup" in devices.columns


def test_a_law_that_does_not_fit_projects_nothing(write, work_folder):
    for world_size, epoch_s in ((1, 1.0), (2, 4.0), (4, 1.0), (8, 12.0)):
        write(Path(f"sweep/{world_size}"), [9.0, epoch_s], world_size)
    assert main(["sweep"]) == 0
    report = (Path("sweep/summary") / "report.md").read_text()
    assert "does not fit these speedups" in report and "projected)" not in report


def test_the_answer_warns_of_different_results(write, work_folder):
    for world_size, accuracy in ((1, 0.98), (2, 0.90)):
        write(Path(str(world_size)), [9.0, 1.0], world_size, sections={"result": {"test_accuracy": accuracy}})
    assert "results differ: test accuracy -8.00 points" in answer(analyze([Path()]))


def test_an_unwritable_folder_is_an_error(scaled, capsys):
    Path("file").write_text("")
    assert main(["sweep", "--out", "file/summary"]) != 0
    assert "error:" in capsys.readouterr().err


def test_out_is_where_files_are_written(scaled):
    analysis = analyze([scaled])
    write_tables(analysis, Path("elsewhere"))
    write_reports(analysis, Path("elsewhere"))
    assert (Path("elsewhere") / "report.html").exists() and not (scaled / "summary").exists()


def test_without_plots_those_of_an_earlier_report_are_removed(scaled):
    summary = scaled / "summary"
    assert main(["sweep"]) == 0
    with_plots = (summary / "report.md").read_text()
    assert main(["sweep", "--no-plots"]) == 0
    without = (summary / "report.md").read_text()
    assert list(summary.glob("plots/*")) == []
    assert without == re.sub(r"## Plots\n.*?(?=## Methods)", "", with_plots, flags=re.DOTALL)
    assert not any(sign in (summary / "report.html").read_text() for sign in ("<img", ">Plots<"))


def test_control_characters_are_escaped(write, work_folder, capsys):
    folder = Path("sweep\x1b[31m")
    write(folder / "a", [9.0, 1.0], changed={"x.name": "\x1b]0;title\x07"}, command=["python", "\n\n<img src=x>"])
    write(folder / "b\nc", [9.0, 1.0], changed={"x.name": "=cmd()"})
    write(folder / os.fsdecode(b"d\xff"), [9.0, 1.0], status="failed")
    assert main([str(folder), "--out", "summary"]) == 0
    shown = capsys.readouterr().out
    texts = [shown, *((Path("summary") / name).read_text() for name in ("report.txt", "report.md", "report.html"))]
    assert not any("\x1b" in text or "\x07" in text for text in texts)
    assert "\n<img" not in texts[2] and "\\x1b]0;title" in texts[2].replace("\\\\", "\\")
    cells = [cell for row in csv.reader((Path("summary") / "comparisons.csv").open()) for cell in row]
    assert "'=cmd()" in cells and "=cmd()" not in cells


def test_families_with_similar_names_are_separate_tensorboard_runs(write, work_folder):
    for name in ("a+b", "a*b", "plots"):
        for world_size in (1, 2):
            write(Path(f"sweep/{ord(name[1])}{world_size}"), [9.0, 1.0], world_size, changed={"x.name": name})
    assert main(["sweep"]) == 0
    assert len(list((Path("sweep/summary/tensorboard")).rglob("events*"))) == 3 + 2


SEARCH = "hydra:\n  sweeper:\n    n_trials: 20\n"


def write_search(write, metric, values) -> None:
    """Write a search s/ with one trial per value."""
    for number, value in enumerate(values):
        write(
            Path(f"s/{number}"), [9.0, 1.0 + number], changed={"optimizer.lr": 0.1 / (number + 1)},
            config={"measure": {"target_accuracy": None}, "optimized_metric": metric},
            sections={
                "result": {"val_accuracy": value, "val_loss": 1 - value}, "timing": {"epoch_time_s": 1.0 + number},
            },
        )  # fmt: skip
    Path("s/multirun.yaml").write_text(SEARCH)


@pytest.mark.parametrize(("metric", "best"), [("val_accuracy", "0.97"), ("val_loss", "0.03")])
def test_the_answer_of_a_search_is_its_best_trial(metric, best, write, work_folder, capsys):
    write_search(write, metric, [0.5, 0.9, 0.97, 0.8])
    assert main(["s"]) == 0
    printed = capsys.readouterr().out
    assert f"What is best in {metric}?" in printed
    assert f"{metric} {best} with lr=0.03333: the best of 4 groups." in " ".join(printed.split())
    table = printed.partition("Best trials")[2].partition("The best 4 of 4")[0]
    assert [line.split()[1] for line in table.splitlines() if "lr=" in line] == [
        "lr=0.03333", "lr=0.05", "lr=0.025", "lr=0.1",
    ]  # fmt: skip
    assert "Best trials" in Path("s/summary/report.html").read_text()
    assert not Path("s/summary/plots/pareto.png").exists()


def test_a_sweep_that_is_no_search_has_no_best_trial(write, work_folder, capsys):
    write_search(write, "val_loss", [0.5, 0.9])
    Path("s/multirun.yaml").write_text("hydra:\n  sweeper: {}\n")
    assert main(["s"]) == 0
    assert "Best trials" not in capsys.readouterr().out


def test_the_answer_of_several_objectives_is_the_pareto_front(write, work_folder, capsys):
    write_search(write, ["val_accuracy", "epoch_time_s"], [0.5, 0.9, 0.97, 0.8])
    assert main(["s"]) == 0
    assert Path("s/summary/plots/pareto.png").exists()
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "3 of 4 groups are on the Pareto front: from val_accuracy 0.97, epoch_time_s 3 with lr=0.03333 "
        "to val_accuracy 0.5, epoch_time_s 1 with lr=0.1." in printed
    )


def test_words_are_broken_in_as_few_columns_as_possible(write, work_folder, capsys):
    name = "a_class_with_a_long_name_of_its_own"
    for class_path, target in ((f"my.{name.title()}", name), ("my.B", "b")):
        write(Path(target), [9.0, 1.0], changed={"model._target_": class_path}, sections={"model": {"name": target}})
    assert main(["."]) == 0
    table = capsys.readouterr().out.partition("Groups")[2].partition("Medians")[0]
    assert "1,000" in table and "97.00%" in table and "samples/s" in table
