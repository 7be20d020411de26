"""run.json and epochs.csv: what they hold, and that they survive failures."""

import json
import math
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import pytest
from tests.support.faults import fill, no_free_descriptor, resource_limit, small_disk
from tests.support.records import EPOCH_ROW, append_epochs

from laptime.record import files as record
from laptime.record import schema
from laptime.record.epochs import EPOCH_COLUMNS, NEW_COLUMNS
from laptime.record.run_record import RunRecord
from laptime.record.schema import filled

# The run directory's contract: every section of run.json, and the keys of those that are objects.
CONTRACT = {
    "schema_version": None,
    "status": None,
    "error": None,
    "started_at": None,
    "ended_at": None,
    "config": None,
    "config_hash": None,
    "group_hash": None,
    "seed": None,
    "device": "requested used name",
    "dataset": "name num_train num_val num_test checksum",
    "model": "name num_parameters flops_per_sample",
    "strategy": "name backend world_size threads_per_rank oversubscribed rank_pids",
    "batch": "scope per_rank_batch_size global_batch_size",
    "timing": "warmup_epochs total_train_s epoch_time_s samples_per_s steps_per_s startup_s",
    "result": "train_loss train_accuracy val_loss val_accuracy test_loss test_accuracy time_to_accuracy "
    "score train_score val_score test_score time_to_score",
    "resources": "peak_rss_bytes peak_device_memory_bytes cpu_percent energy_joules",
    "communication": "num_all_reduces_per_step bytes_per_step compute_s comm_s overlap_s exposed_s "
    "isolated_all_reduce_s",
    "contention": "no_sync_step_s",
    "breakdown": None,
    "peak": "matmul_flop_per_s copy_bytes_per_s mfu",
    "bare_loop": "epoch_time_s overhead",
    "noise": "load_before load_after on_battery epochs",
    "quality": "grade reasons",
    "attempts": None,
    "environment": None,
    "git": "commit dirty diff_hash",
    "command": None,
}


@pytest.mark.unit
def test_new_record_has_every_key_of_the_contract():
    new = RunRecord().to_json()
    missing = [
        f"{section}.{key}"
        for section, keys in CONTRACT.items()
        for key in (keys or "").split() or [""]
        if section not in new or (key and key not in new[section])
    ]
    assert missing == []


@pytest.mark.unit
def test_a_new_record_is_running_and_empty():
    new = RunRecord().to_json()
    values = [new[key] for key in new.keys() - {"schema_version", "status", "attempts", "lap", "missing"}]
    assert new["status"] == "running" and new["missing"] == {}
    assert new["lap"] == {"unit": "epoch", "num_batches": None, "timer": "training", "contents": None}
    assert all(value is None or set(value.values()) == {None} for value in values)


@pytest.mark.unit
def test_new_records_share_no_objects():
    first, second = RunRecord(), RunRecord()
    first.timing.epoch_time_s = 1.0
    first.start_attempt(0)
    assert second.timing.epoch_time_s is None and second.attempts == []


@pytest.mark.unit
def test_a_key_that_the_schema_lacks_is_refused():
    with pytest.raises(AttributeError):
        RunRecord().timing.epoch_time = 1.0


@pytest.mark.unit
def test_a_written_record_is_read_back(tmp_path):
    new = RunRecord(seed=0, config={"a": [1, 2.5, None, True, "ä"]}, started_at=record.now())
    new.strategy = schema.Strategy(world_size=2, threads_per_rank=1, oversubscribed=False, rank_pids=[1, 2])
    new.start_attempt(0)
    new.end_attempt("failed", schema.RunError(type="TrainingFailed", message="no", epoch=None, step=3))
    new.write(tmp_path)
    assert RunRecord.read(tmp_path) == new
    assert record.read_record(tmp_path)["error"] == {
        "type": "TrainingFailed", "message": "no", "epoch": None, "step": 3,
    }  # fmt: skip


@pytest.mark.unit
@pytest.mark.parametrize("section", ["device", "dataset", "model", "strategy", "batch"])
def test_an_empty_section_has_its_keys_and_is_read_as_none(section, tmp_path):
    RunRecord().write(tmp_path)
    content = record.read_record(tmp_path)
    assert set(content[section].values()) == {None} and set(CONTRACT[section].split()) <= set(content[section])
    assert getattr(RunRecord.of(content), section) is None
    with pytest.raises(ValueError, match="setup"):
        filled(getattr(RunRecord.of(content), section))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("strategy", "world_size", 0), ("strategy", "world_size", "2"), ("strategy", "oversubscribed", None),
        ("timing", "epoch_time_s", "1"), ("timing", "epoch_time_s", True), ("timing", "epoch_time_s", 1e301),
        ("attempts", None, {}), ("command", None, ["a", 1]), ("status", None, "finished"), ("seed", None, 1.5),
        ("noise", "epochs", [{"epoch": 1}]), ("quality", "reasons", "none"),
    ],
)  # fmt: skip
def test_the_refusal_of_a_value_of_another_type_names_its_key(section, key, value):
    content = RunRecord(strategy=schema.Strategy(world_size=2, threads_per_rank=1, oversubscribed=False)).to_json()
    content[section] = value if key is None else content[section] | {key: value}
    with pytest.raises(ValueError, match="damaged") as caught:
        RunRecord.of(content)
    assert section in str(caught.value) and (key or "") in str(caught.value)


@pytest.mark.unit
def test_records_of_later_and_older_versions_are_read():
    content = RunRecord().to_json() | {"of_the_future": 1}
    del content["bare_loop"], content["noise"]["on_battery"]
    assert RunRecord.of(content) == RunRecord()


@pytest.mark.unit
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_infinite_values_and_nan_become_null(value, tmp_path):
    new = RunRecord(config={"values": [1.0, value], "pair": (value, 2)})
    new.timing.epoch_time_s, new.timing.samples_per_s = value, 0.0
    new.write(tmp_path)
    read = record.read_record(tmp_path)
    assert (read["timing"]["epoch_time_s"], read["timing"]["samples_per_s"]) == (None, 0.0)
    assert read["config"] == {"values": [1.0, None], "pair": [None, 2]}
    assert repr(new.timing.epoch_time_s) == repr(value)  # unchanged in memory


@pytest.mark.unit
def test_an_attempt_without_an_end_is_marked_as_died():
    new = RunRecord()
    new.start_attempt(0)
    new.start_attempt(1)
    new.end_attempt("completed", None)
    assert [(attempt.attempt, attempt.status) for attempt in new.attempts] == [(0, "failed"), (1, "completed")]
    assert new.attempts[0].error.type == "RankDied" and new.attempts[1].ended_at == new.ended_at


@pytest.mark.unit
def test_a_reader_during_a_write_sees_the_whole_old_record(tmp_path):
    RunRecord().write(tmp_path)
    before = (tmp_path / record.RUN_FILE).read_bytes()
    with (tmp_path / record.RUN_FILE).open("rb", buffering=0) as reader:
        start = reader.read(10)
        RunRecord(status="completed").write(tmp_path)
        assert start + reader.read() == before


@pytest.mark.unit
def test_run_json_is_strict_json_that_other_users_may_read(tmp_path):
    RunRecord().write(tmp_path)
    path = tmp_path / record.RUN_FILE

    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads(path.read_bytes(), parse_constant=refuse)["status"] == "running"
    assert path.stat().st_mode & 0o444 == 0o444


@contextmanager
def failing(function: str) -> Iterator[None]:
    """A function of `os` fails, as if a device could not store the data."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("No space left on device")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, function, fail)
        yield


FAULTS = {
    "no file can be opened": (no_free_descriptor, "Too many open files"),
    "the file ends early": (partial(resource_limit, resource.RLIMIT_FSIZE, 1000), "File too large"),
    "it can't be seen onto the disk": (partial(failing, "fsync"), "No space left"),
    "it can't be renamed": (partial(failing, "replace"), "No space left"),
}


@pytest.mark.unit
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_write_leaves_only_the_whole_old_record(fault, tmp_path):
    RunRecord().write(tmp_path)
    before = (tmp_path / record.RUN_FILE).read_bytes()
    breaks, words = FAULTS[fault]
    with pytest.raises(OSError, match=words), breaks():
        RunRecord(status="completed").write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [record.RUN_FILE]
    assert (tmp_path / record.RUN_FILE).read_bytes() == before


def test_a_full_disk_leaves_only_the_whole_old_record(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        RunRecord().write(disk)
        before = (disk / record.RUN_FILE).read_bytes()
        fill(disk)
        with pytest.raises(OSError, match="No space left"):
            RunRecord(status="completed").write(disk)
        assert {path.name for path in disk.iterdir()} == {record.RUN_FILE, "filler"}
        assert (disk / record.RUN_FILE).read_bytes() == before


@pytest.mark.unit
def test_a_full_disk_appends_all_rows_or_none(tmp_path):
    append_epochs(tmp_path, [EPOCH_ROW])
    before = (tmp_path / record.EPOCHS_FILE).read_bytes()
    row = len(before.splitlines(keepends=True)[1])
    with (
        pytest.raises(OSError, match="File too large"),
        resource_limit(resource.RLIMIT_FSIZE, len(before) + 3 * row // 2),
    ):
        append_epochs(tmp_path, [EPOCH_ROW] * 2)
    assert (tmp_path / record.EPOCHS_FILE).read_bytes() == before
    append_epochs(tmp_path, [EPOCH_ROW] * 2)
    assert len(record.read_epochs(tmp_path)) == 3


@pytest.mark.unit
def test_a_record_that_json_cannot_hold_leaves_the_old_one(tmp_path):
    RunRecord().write(tmp_path)
    with pytest.raises(TypeError):
        RunRecord(config={"a": object()}).write(tmp_path)
    assert record.read_record(tmp_path)["config"] is None
    assert [path.name for path in tmp_path.iterdir()] == [record.RUN_FILE]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON"),
        (b'{"status": "run', "not JSON"),
        (b'"\xff"', "not UTF-8"),
        (b"[1, 2]", "not an object"),
        (b"null", "not an object"),
        (b"{}", "schema version None"),
        (b'{"schema_version": 999}', "schema version 999"),
    ],
)
def test_the_refusal_of_a_damaged_record_names_the_file(content, reason, tmp_path):
    (tmp_path / record.RUN_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught:
        record.read_record(tmp_path)
    assert str(tmp_path / record.RUN_FILE) in str(caught.value)


@pytest.mark.unit
def test_an_absent_record_raises_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        record.read_record(tmp_path)


@pytest.mark.unit
def test_columns_of_an_epoch_are_those_of_the_contract():
    assert tuple(EPOCH_ROW) == EPOCH_COLUMNS


@pytest.mark.unit
def test_appended_epochs_are_read_back_with_values_and_types(tmp_path):
    second = EPOCH_ROW | {"epoch": 2, "rank": 1, "is_warmup": True, "epoch_time_s": 0.1 + 0.2}
    append_epochs(tmp_path, [EPOCH_ROW])
    append_epochs(tmp_path, [second])
    frame = record.read_epochs(tmp_path)
    assert frame.to_dict("records") == [EPOCH_ROW, second]
    assert frame["is_warmup"].dtype == bool


@pytest.mark.unit
def test_a_value_that_was_not_measured_is_missing_not_0(tmp_path):
    row = EPOCH_ROW | {"val_loss": None, "device_memory_bytes": None, "train_loss": 0.0}
    append_epochs(tmp_path, [row])
    frame = record.read_epochs(tmp_path)
    missing = frame.columns[frame.isna().all()].tolist()
    assert missing == ["val_loss", "device_memory_bytes"]
    assert frame["train_loss"].tolist() == [0.0]


@pytest.mark.unit
def test_the_header_is_written_once(tmp_path):
    for _ in range(3):
        append_epochs(tmp_path, [EPOCH_ROW, EPOCH_ROW])
    lines = (tmp_path / record.EPOCHS_FILE).read_text().splitlines()
    assert lines[0] == ",".join(EPOCH_COLUMNS)
    assert len(lines) == 1 + 6


@pytest.mark.unit
def test_a_file_of_an_older_laptime_keeps_its_columns(tmp_path):
    old = [column for column in EPOCH_COLUMNS if column not in NEW_COLUMNS]
    values = ["" if EPOCH_ROW[column] is None else str(EPOCH_ROW[column]) for column in old]
    (tmp_path / record.EPOCHS_FILE).write_text(f"{','.join(old)}\n{','.join(values)}\n")
    append_epochs(tmp_path, [EPOCH_ROW | {"epoch": 2}])
    header, first, second = (line.split(",") for line in (tmp_path / record.EPOCHS_FILE).read_text().splitlines())
    assert header == old and second == [first[0], "2", *first[2:]]
    frame = record.read_epochs(tmp_path)
    assert tuple(frame.columns) == EPOCH_COLUMNS and frame[list(NEW_COLUMNS)].isna().all(axis=None)
    # In such a file, accuracy is the score.
    expected = EPOCH_ROW | dict.fromkeys(NEW_COLUMNS) | {"train_score": 0.9, "val_score": 0.8}
    assert [asdict(row) for row in record.epoch_rows(tmp_path)] == [expected, expected | {"epoch": 2}]


@pytest.mark.unit
def test_the_header_is_written_into_an_empty_file_of_a_killed_run(tmp_path):
    (tmp_path / record.EPOCHS_FILE).touch()
    append_epochs(tmp_path, [EPOCH_ROW])
    assert record.read_epochs(tmp_path).to_dict("records") == [EPOCH_ROW]


@pytest.mark.unit
def test_a_row_after_an_incomplete_one_of_a_killed_run_is_whole(tmp_path):
    append_epochs(tmp_path, [EPOCH_ROW])
    with (tmp_path / record.EPOCHS_FILE).open("a") as file:
        file.write("0,2,0,Fal")
    append_epochs(tmp_path, [EPOCH_ROW | {"attempt": 1}])
    rows = record.read_epochs(tmp_path)
    assert rows[rows["attempt"] == 1]["epoch_time_s"].tolist() == [1.25]


@pytest.mark.unit
def test_run_without_epochs_has_an_empty_frame_with_all_columns(tmp_path):
    frame = record.read_epochs(tmp_path)
    assert frame.empty
    assert tuple(frame.columns) == EPOCH_COLUMNS


@pytest.mark.unit
def test_times_are_utc_in_milliseconds():
    assert record.now().endswith("+00:00")
    assert len(record.now()) == len("2025-01-02T03:04:05.678+00:00")


@pytest.mark.unit
def test_an_empty_epochs_file_has_no_rows(tmp_path):
    (tmp_path / record.EPOCHS_FILE).touch()
    assert record.read_epochs(tmp_path).empty


@pytest.mark.unit
def test_a_number_of_bytes_stays_an_integer():
    content = RunRecord().to_json()
    content["resources"]["peak_rss_bytes"] = 634343424
    assert repr(RunRecord.of(content).to_json()["resources"]["peak_rss_bytes"]) == "634343424"


@pytest.mark.unit
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": "x"}, "config is x"), ({"status": None}, "no status"), ({"error": [1]}, "error is [1]"),
        ({"environment": {"packages": {"torch": 2}}}, "environment.packages: Expected str | null, got int"),
    ],
)  # fmt: skip
def test_the_error_of_a_damaged_record_names_the_key_and_value(change, words, tmp_path):
    required = {"cpu": "a CPU", "num_usable_cores": 1, "hostname_hash": "h", "code_hash": "c"}
    if "environment" in change:
        change["environment"] |= required
    (tmp_path / record.RUN_FILE).write_text(json.dumps(RunRecord().to_json() | change))
    with pytest.raises(ValueError) as caught:
        RunRecord.read(tmp_path)
    assert words in str(caught.value)
