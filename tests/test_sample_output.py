"""Output that a document shows is what the command prints: the same titles, rows, columns and words.

Only figures, dates and directories may differ. Whoever changes an output must paste a new sample.

Lines that depend on measurements are printed from the figures below, which lead to the words of the samples. Change
them if a new sample has other verdicts.
"""

import contextlib
import copy
import io
import os
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from laptime.analysis import write
from laptime.analysis.sweep_callback import report_sweep
from laptime.cli import main
from laptime.doctor import __main__ as doctor
from laptime.doctor import examine, groups, steps
from laptime.doctor.probe import Noise
from laptime.lap.quality import assess
from laptime.machine import counters
from laptime.measure.limit import limit, training_advice
from laptime.measure.peak import Peak
from laptime.record import files as records
from laptime.record.run_record import RunRecord
from laptime.runner.table import print_results
from tests.support.records import append_epochs, update, write_record

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
SWEEP = "python train.py -m seed=1,2,3 strategy.world_size=1,2,4 training.batch_size=128 dataset.limit=8000"
# The commands whose output is shown, and the fixture that prints it. test_own_model.py looks after own_model.md.
PRINTED_BY = {
    "python train.py": "single_run",
    SWEEP: "sweep",
    "python -m laptime.doctor": "doctor_report",
    "python train.py dataset=mnits": "mistyped_option",
    "python train.py trainer.max_epochs=3": "lightning_key",
    "laptime evalute run=latest": "mistyped_command",
}
LOG_LINE = re.compile(r"\[\d\d:\d\d:\d\d\] ")
BORDER = re.compile(r"[╭┌├╰└─┬┼┴╮┐┤╯┘]+")
# The figures below replace what these settings switch off.
QUICK = ["measure.peak=false", "measure.breakdown=false"]
# Figures of the sweep in the README: one value per repeat, by number of ranks.
EPOCH_TIMES_S = {1: (0.234, 0.227, 0.230), 2: (0.225, 0.209, 0.215), 4: (0.267, 0.270, 0.243)}
TEST_ACCURACIES = {1: (0.9323, 0.9270, 0.9310), 2: (0.9236, 0.9225, 0.9156), 4: (0.9025, 0.9095, 0.9070)}
TRAIN_LOSSES = {1: (0.164, 0.157, 0.153), 2: (0.206, 0.207, 0.210), 4: (0.281, 0.271, 0.273)}
NO_SYNC_STEP_S = {1: 0.0042, 2: 0.0045, 4: 0.0092}
SYNCHRONIZATION_S = {1: None, 2: 0.0034, 4: 0.0093}
STRAGGLER_DELAYS = {1: None, 2: 0.003, 4: 0.096}
STEPS_PER_S = {1: 217.0, 2: 116.0, 4: 48.7}


def samples(document: str) -> list[tuple[str, list[list[str]]]]:
    """Each command of a document whose output is shown, and the parts of the output between lines with `...`."""
    shown_outputs = []
    for block in re.findall(r"(?:^    .*\n)+", (ROOT / document).read_text(), re.MULTILINE):
        for shown in re.split(r"^    \$ ", block, flags=re.MULTILINE)[1:]:
            command, *lines = [line.removeprefix("    ") for line in shown.splitlines()]
            parts: list[list[str]] = [[]]
            for line in lines:
                if line.strip() == "...":
                    parts.append([])
                else:
                    parts[-1].append(line)
            if any(parts):
                shown_outputs.append((command, [part for part in parts if part]))
    return shown_outputs


SAMPLES = [(document, *sample) for document in DOCUMENTS for sample in samples(document)]


def whole_lines(lines: list[str]) -> list[str]:
    """The lines without borders of tables. Wrapped table rows and paragraphs become one line each."""
    joined: list[str] = []
    rows: list[list[str]] = []
    paragraph: list[str] = []

    def end() -> None:
        joined.extend(" | ".join(" ".join(cell.split()) for cell in row) for row in rows)
        joined.extend([" ".join(" ".join(paragraph).split())] if paragraph else [])
        rows.clear()
        paragraph.clear()

    kind = ""
    for line in map(str.strip, lines):
        if line.startswith("├"):  # the rows above are the head
            rows[:] = [join_nonempty(rows)]
            continue
        previous, kind = kind, "row" if line.startswith("│") else "border" if BORDER.fullmatch(line) else "text"
        if kind != previous or not line:
            end()
        if kind == "row":
            cells = line.strip("│").split("│")
            if rows and not cells[0].strip():
                rows[-1] = join_nonempty([rows[-1], cells])
            else:
                rows.append(cells)
        elif kind == "text" and line:
            paragraph.append(line)
    end()
    return joined


def join_nonempty(rows: list[list[str]]) -> list[str]:
    return [" ".join(cells) for cells in zip(*rows, strict=True)]


def without_figures(text: str) -> str:
    """Replace each number by `#`, and each date and time in a path."""
    return re.sub(r"#(?:/?#)*", "#", re.sub(r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?", "#", text))


def words(lines: list[str]) -> str:
    return without_figures(" ".join(whole_lines(lines)))


# Printed output


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Directory and stderr of a real run with little data."""
    folder = tmp_path_factory.mktemp("run")
    error = io.StringIO()
    overrides = ["device=cpu", "strategy.threads_per_rank=2", "dataset.limit=600", "training.epochs=2", *QUICK]
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(error):
        with pytest.raises(SystemExit) as end:
            main(overrides)
        assert not end.value.code, error.getvalue()
        (path,) = folder.rglob("run.json")
    return path.parent, error.getvalue()


@pytest.fixture
def wide(monkeypatch):
    """A wide terminal: no line is wrapped, and no column is hidden."""
    monkeypatch.setenv("COLUMNS", "1000")


@pytest.fixture
def single_run(trained, wide, capsys, monkeypatch):
    run_dir, error = trained
    record = records.read_record(run_dir)
    record["dataset"]["limit"] = None
    record["quality"] = {"grade": "A", "reasons": []}
    parts = {"data_s": 0.00006, "forward_s": 0.0008, "backward_s": 0.0006, "optimizer_s": 0.0004, "rest_s": 0.00004}
    percentiles = {"step_p50_s": 0.0019, "step_p95_s": 0.0022, "step_p99_s": 0.0045}
    update(record, "breakdown", **parts, **percentiles, step_s=sum(parts.values()), instrument_s=0.0)
    flops, peak = 2.4e6, 2.2e11
    run_record = RunRecord.of(record)
    run_record.peak = limit(
        flops, 29_000, 64, Peak(peak, 7e10), run_record.breakdown, 10**7, training_advice("memory", "32-true")
    )
    monkeypatch.chdir(run_dir.parents[2])
    print_results(run_record, run_dir)
    return [error, capsys.readouterr().out]


@pytest.fixture
def sweep(trained, wide, work_folder, capsys, monkeypatch):
    """The end of a sweep of nine runs, which are copies of the real run with the figures above."""
    # Plots are slow, and other tests draw them.
    monkeypatch.setattr(write, "write_reports", lambda *arguments, **options: None)
    sweep_dir = Path("multirun/2026-11-29/19-26-56")
    first = records.read_record(trained[0])
    rows = [asdict(row) for row in records.epoch_rows(trained[0])]
    for repeat in range(3):
        for number, (world_size, times_s) in enumerate(EPOCH_TIMES_S.items()):
            record = copy.deepcopy(first)
            record["hashed_config"] |= {"seed": repeat, "strategy.world_size": world_size}
            record |= {"seed": repeat, "config_hash": f"{world_size} {repeat}", "group_hash": str(world_size)}
            oversubscribed = world_size == 4
            ranks = {"world_size": world_size, "backend": "gloo" if world_size > 1 else None}
            update(record, "strategy", **ranks, threads_per_rank=1, oversubscribed=oversubscribed)
            update(record, "batch", scope="per_rank", global_batch_size=128 * world_size)
            update(record, "timing", steps_per_s=STEPS_PER_S[world_size])
            accuracies = TEST_ACCURACIES[world_size]
            results = {"test_accuracy": accuracies, "test_score": accuracies, "train_loss": TRAIN_LOSSES[world_size]}
            update(record, "result", **{key: values[repeat] for key, values in results.items()})
            update(record, "communication", cost_s=SYNCHRONIZATION_S[world_size])
            straggler_delay = STRAGGLER_DELAYS[world_size]
            update(record, "contention", no_sync_step_s=NO_SYNC_STEP_S[world_size], straggler_delay=straggler_delay)
            record["dataset"]["num_test"] = 8000
            record["environment"]["num_usable_cores"] = 2
            outliers = ["1 of 4 epochs is an outlier", "more threads than cores"]
            record["quality"] = {"grade": "B", "reasons": outliers} if oversubscribed else {"grade": "A", "reasons": []}
            run_dir = sweep_dir / str(3 * repeat + number)
            run_dir.mkdir(parents=True)
            record["run_dir"] = str(run_dir)  # the analysis counts runs with the same directory once
            write_record(run_dir, record)
            times = {"epoch_time_s": times_s[repeat], "num_samples": 6400}
            append_epochs(run_dir, [row | times | {"rank": rank} for rank in range(world_size) for row in rows])
    report_sweep(sweep_dir)
    return list(capsys.readouterr())


@pytest.fixture
def doctor_report(wide, capsys, monkeypatch):
    """The report of a busy machine, without the checks whose results depend on the machine."""
    sums = [3.0 * number for number in range(1, 9)]
    measured = counters.Noise(wall_s=10.0, other_cores=1.2, steal_fraction=0.0, num_swapped_pages=0)
    laps_s = (0.6,) * 16
    busiest = (("pytest (process 12)", 0.8), ("python (process 34)", 0.4))
    noise = Noise(assess([measured], laps_s, 2, timed="laps"), 2, laps_s, measured, None, busiest)
    all_checks = examine.checks
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr("laptime.runner.fresh_processes.preload", lambda: None)
    monkeypatch.setattr(
        examine, "check_devices", lambda: [steps.check("cpu", 0, precision) for precision in steps.TOLERANCES]
    )
    monkeypatch.setattr(examine, "check_backends", lambda: [groups.judge("gloo", [sums, sums], 9.0)])
    monkeypatch.setattr(examine, "probe", lambda seconds, cores, battery: noise)
    shown = ("other processes", "hypervisor")
    monkeypatch.setattr(
        examine, "checks", lambda *results: [check for check in all_checks(*results) if check.name in shown]
    )
    assert doctor.main([]) == 0
    return list(capsys.readouterr())


def refusal(capsys, *arguments: str) -> list[str]:
    with pytest.raises(SystemExit):
        main(list(arguments))
    return list(capsys.readouterr())


@pytest.fixture
def mistyped_option(capsys):
    return refusal(capsys, "dataset=mnits")


@pytest.fixture
def lightning_key(capsys):
    return refusal(capsys, "trainer.max_epochs=3")


@pytest.fixture
def mistyped_command(capsys):
    return refusal(capsys, "evalute", "run=latest")


# Samples in the documents


def test_every_sample_is_checked():
    shown = {command for _, command, _ in SAMPLES}
    assert shown == set(PRINTED_BY), "name the new command in PRINTED_BY, with a fixture that prints its output"


@pytest.mark.parametrize(
    ("command", "parts"),
    [pytest.param(command, parts, id=f"{document}: {command}") for document, command, parts in SAMPLES],
)
def test_a_sample_is_what_the_command_prints(command, parts, request):
    remaining = [words(text.splitlines()) for text in request.getfixturevalue(PRINTED_BY[command])]
    for part in parts:
        log = [line for line in part if LOG_LINE.match(line)]
        for lines in filter(None, (log, [line for line in part if line not in log])):
            sample = words(lines)
            stream = next((number for number, text in enumerate(remaining) if sample in text), None)
            printed = "\n".join(remaining)
            assert stream is not None, f"not printed, or not in this order:\n{sample}\nPrinted:\n{printed}"
            remaining[stream] = remaining[stream].partition(sample)[2]


def test_documents_that_show_the_same_command_show_the_same_result():
    results = [
        {without_figures(line): line for part in parts for line in whole_lines(part)}
        for _, command, parts in SAMPLES
        if command == SWEEP
    ]
    first, second = results
    shared = first.keys() & second.keys()
    assert len(shared) >= 2
    assert {first[line] for line in shared} == {second[line] for line in shared}


def test_figures_in_the_readme_are_in_its_sample():
    shown = next(str(parts) for document, command, parts in SAMPLES if (document, command) == ("README.md", SWEEP))
    (remark,) = re.findall(r"^A hand-written script [^$]*?\n\n", (ROOT / "README.md").read_text(), re.MULTILINE)
    figures = re.findall(r"\d+\.\d+|\d+%", remark)
    assert len(figures) >= 3
    assert [figure for figure in figures if figure not in shown] == []
