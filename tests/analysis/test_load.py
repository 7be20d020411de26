"""What counts as a run, and what is listed with the reason why not."""

import json
import shutil
from pathlib import Path

import pytest

from laptime.analysis.groups import group_runs
from laptime.analysis.load import find_runs, load_runs
from laptime.analysis.remarks import remarks_of
from laptime.record.files import EPOCHS_FILE, RUN_FILE

pytestmark = pytest.mark.unit


def test_epochs_are_the_slowest_ranks_with_everybodys_samples(write, work_folder):
    write(Path("run"), [5.0, 1.0, 2.0], world_size=2, rank_times_s=[[5.0, 1.0, 2.0], [4.0, 1.5, 1.0]])
    (run,), skipped = load_runs([Path()])
    assert not skipped
    assert run.epochs["epoch_time_s"].to_list() == [5.0, 1.5, 2.0]
    assert run.epochs["is_warmup"].to_list() == [True, False, False]
    assert run.counted["samples_per_s"].to_list() == [2000 / 1.5, 2000 / 2.0]
    assert run.epochs["elapsed_s"].to_list() == [5.0, 6.5, 8.5]


def test_runs_are_found_once_sorted_by_number(write, work_folder):
    for number in (10, 9, 1):
        write(Path(f"sweep/{number}"), [1.0, 1.0])
    write(Path("sweep/summary/old"), [1.0, 1.0])
    Path("sweep/multirun.yaml").touch()
    paths = find_runs([Path("sweep"), Path("sweep/9"), Path()])
    assert [path.name for path in paths if "summary" not in path.parts] == ["1", "9", "10"]
    assert find_runs([Path("sweep")]) == [Path("sweep/1"), Path("sweep/9"), Path("sweep/10")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"status": "failed", "error": {"type": "X", "message": "rank 1 was killed\nmore"}},
            "failed: rank 1 was killed",
        ),
        ({"status": "running"}, "running"),
        ({"status": "interrupted", "error": {"message": "stopped by SIGTERM"}}, "interrupted: stopped by SIGTERM"),
        ({"schema_version": 0}, "schema version 0, not 1"),
        ({"hashed_config": None}, "older version"),
        ({"strategy": None}, "run.json has no strategy"),
        ({"device": {}}, "run.json has no device"),
        ({"device": {"used": "cpu"}}, "run.json has no device.requested"),
        ({"environment": [1]}, "damaged: environment is [1]"),
        ({"seed": "one"}, "damaged: seed is one"),
        ({"group_hash": ["x"]}, "damaged: group_hash is"),
        ({"attempts": 3}, "damaged: attempts is 3"),
        ({"command": [1]}, "damaged: command[0] is 1"),
        ({"config": "x"}, "damaged: config is x"),
        ({"config": {"measure": {}, "training": 5}}, "damaged: config.training is 5"),
        ({"started_at": {}}, "damaged: started_at is {}"),
        (
            {
                "environment": {
                    "cpu": "x",
                    "num_usable_cores": 1,
                    "hostname_hash": "h",
                    "code_hash": "c",
                    "packages": {"torch": 2},
                }
            },
            "damaged: environment.packages",
        ),
    ],
)
def test_unusable_runs_are_skipped_with_the_reason(change, reason, write, work_folder):
    write(Path("good"), [1.0, 1.0])
    write(Path("bad"), [1.0, 1.0], **change)
    runs, skipped = load_runs([Path()])
    assert [run.path for run in runs] == [Path("good")]
    assert [skipped_run.path for skipped_run in skipped] == [Path("bad")]
    assert reason in skipped[0].reason


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        (RUN_FILE, b"", "not JSON"),
        (RUN_FILE, b"{\xff", "not UTF-8"),
        (RUN_FILE, b"[]", "not an object"),
        (RUN_FILE, b'{"schema_version": 1', "not JSON"),
        (EPOCHS_FILE, b"", "no complete epoch"),
        (EPOCHS_FILE, b"a,b\n1,2\n", "no column attempt"),
        (EPOCHS_FILE, b"\x00\x01\x02", "column"),
    ],
)
def test_runs_with_damaged_files_are_skipped(file, content, reason, write, work_folder):
    (write(Path("run"), [1.0, 1.0]) / file).write_bytes(content)
    runs, (skipped,) = load_runs([Path()])
    assert runs == [] and reason in skipped.reason


def test_a_run_that_never_started_is_skipped(work_folder):
    Path("0/.hydra").mkdir(parents=True)
    Path("0/.hydra/config.yaml").write_text("")
    _, (skipped,) = load_runs([Path()])
    assert "has no run.json" in skipped.reason


def test_incomplete_epochs_and_torn_rows_are_ignored(write, work_folder):
    path = write(Path("run"), [1.0, 1.0, 1.0], world_size=2) / EPOCHS_FILE
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n0,2,1,Fal")
    (run,), _ = load_runs([Path()])
    assert run.epochs["epoch"].to_list() == [0, 1]
    assert run.remarks == ("1 rows of epochs.csv can't be read",)


def test_the_last_attempt_of_an_epoch_counts(write, work_folder):
    path = write(Path("run"), [1.0, 1.0, 1.0]) / EPOCHS_FILE
    header, *rows = path.read_text().splitlines()
    again = rows[2].replace("0,2,0,False,1.0", "1,2,0,True,7.0")
    path.write_text("\n".join([header, *rows, again]) + "\n")
    (run,), _ = load_runs([Path()])
    assert run.epochs["epoch_time_s"].to_list() == [1.0, 1.0, 7.0]
    assert run.epochs["is_warmup"].to_list() == [True, False, True]


def test_only_warm_up_is_no_measurement(write, work_folder):
    write(Path("run"), [1.0])
    _, (skipped,) = load_runs([Path()])
    assert skipped.reason == "no epoch after the warm-up"


def test_a_missing_accuracy_is_accepted(write, work_folder):
    path = write(Path("run"), [1.0, 1.0], sections={"result": {"test_accuracy": None, "train_loss": None}})
    record = json.loads((path / RUN_FILE).read_text())
    assert record["result"]["test_accuracy"] is None
    (run,), _ = load_runs([Path()])
    assert run.record.result.test_accuracy is None


@pytest.mark.parametrize("value", ["fast", True, 10**400, [1]])
@pytest.mark.parametrize("figure", [("timing", "steps_per_s"), ("result", "test_loss"), ("communication", "cost_s")])
def test_a_figure_that_is_not_a_number_is_damage(figure, value, write, work_folder):
    section, key = figure
    write(Path("run"), [1.0, 1.0], sections={section: {key: value}})
    runs, (skipped,) = load_runs([Path()])
    assert runs == [] and f"damaged: {section}.{key} is" in skipped.reason


@pytest.mark.parametrize(
    ("cut", "training", "num_missing"),
    [
        (slice(0, 2), {"epochs": 4, "checkpoint": None}, 2),  # the last epochs
        (slice(2, 4), {"epochs": 4, "checkpoint": None}, 2),  # the first
        (slice(2, 4), {"epochs": 4, "checkpoint": "other"}, 0),  # another run trained them
        (slice(0, 4, 3), {"epochs": 4}, 2),  # in between
        (slice(0, 4), {"epochs": 4, "checkpoint": None}, 0),
        (slice(0, 4), {"epochs": 2, "checkpoint": None}, -2),  # rows of another run
    ],
)
def test_missing_epochs_are_a_remark(cut, training, num_missing, write, work_folder):
    sections = {"config": {"training": training}, "result": {"stop_reason": "epochs"}}
    path = write(Path("run"), [1.0, 1.0, 1.0, 1.0], sections=sections) / EPOCHS_FILE
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *rows[cut]]) + "\n")
    (run,), _ = load_runs([Path()])
    assert len(run.remarks) == (num_missing != 0)
    assert all("epochs.csv" in remark and str(abs(num_missing)) in remark for remark in run.remarks)


@pytest.mark.parametrize(
    ("column", "value"),
    [("attempt", "inf"), ("rank", "-1"), ("rank", "0.5"), ("epoch", "1e300"), ("epoch_time_s", "inf"),
     ("epoch_time_s", "0"), ("num_samples", "-5"), ("num_samples", "x"), ("is_warmup", "maybe")],
)  # fmt: skip
def test_a_row_with_an_impossible_value_is_ignored(column, value, write, work_folder):
    path = write(Path("run"), [1.0, 1.0, 1.0]) / EPOCHS_FILE
    header, *rows = (line.split(",") for line in path.read_text().splitlines())
    rows[2][header.index(column)] = value
    path.write_text("\n".join(",".join(row) for row in [header, *rows]) + "\n")
    (run,), _ = load_runs([Path()])
    assert run.epochs["epoch"].to_list() == [0, 1]
    assert run.remarks == ("1 rows of epochs.csv can't be read",)


def test_a_resumed_run_has_no_time_to_an_accuracy(write, work_folder):
    path = write(Path("run"), [1.0, 1.0, 1.0]) / EPOCHS_FILE
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *(row.replace("0,", "0,1", 1) for row in rows)]) + "\n")  # epochs 10 to 12
    (group,) = group_runs(load_runs([Path()])[0])
    assert group.runs[0].is_resumed and group.times_to(0.9) == [None]
    assert any("resumed from a checkpoint" in remark for remark in remarks_of(group))


def test_a_copy_of_a_run_counts_once(write, work_folder):
    top = {"sections": {"strategy": {"rank_pids": [7]}}, "started_at": "2026-11-30T10:00:00+00:00"}
    write(Path("a/0"), [9.0, 1.0], run_dir="/first/place", **top)
    write(Path("a/1"), [9.0, 1.0], seed=2, run_dir="/first/other", **top)
    shutil.copytree("a", "b")
    runs, skipped = load_runs([Path()])
    assert [str(run.path) for run in runs] == ["a/0", "a/1"]
    assert [str(skipped_run.path) for skipped_run in skipped] == ["b/0", "b/1"] and "a/0" in skipped[0].reason


@pytest.mark.parametrize("name", ["earlier", "summary", "tensorboard", "checkpoints"])
def test_a_run_counts_whatever_the_name_of_its_folder(name, write, work_folder):
    write(Path(name), [9.0, 1.0])
    write(Path("sweep/0") / name, [9.0, 1.0])  # inside a run it belongs to that run
    write(Path("sweep/0/x"), [9.0, 1.0])
    (Path("sweep/0/run.json")).write_text("{}")
    runs, _ = load_runs([Path()])
    assert {str(run.path) for run in runs} == {name, "sweep/0/x"}


def test_links_to_runs_are_followed_once(write, work_folder):
    write(Path("place/run"), [9.0, 1.0])
    Path("links").mkdir()
    Path("links/run").symlink_to(Path("place/run").absolute())
    Path("links/up").symlink_to(Path("links").absolute())
    assert len(load_runs([Path("links")])[0]) == 1
    assert len(load_runs([Path()])[0]) == 1
