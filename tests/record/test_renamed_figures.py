"""A run.json with the key names of older versions is read, compared and rewritten with today's names."""

import json
from typing import Any

import pytest
from tests.support.records import new_record, write_record

from laptime.record import schema
from laptime.record.files import read_record
from laptime.record.renamed import RENAMED_FIGURES
from laptime.record.run_record import RunRecord

pytestmark = pytest.mark.unit

STRUCTS = {
    "timing": schema.Timing, "contention": schema.Contention, "communication": schema.Communication,
    "peak": schema.Peak, "resources": schema.Resources, "noise.epochs": schema.EpochNoise,
}  # fmt: skip
PAIRS = [(section, old, new) for section, names in RENAMED_FIGURES.items() for old, new in names.items()]
NOISE = {"attempt": 0, "epoch": 0, "is_warmup": False, "wall_s": 2.0}


def with_values(section: str, values: dict[str, Any]) -> dict[str, Any]:
    """A record whose section has these values only."""
    record = new_record()
    if section == "noise.epochs":
        record["noise"]["epochs"] = [NOISE | values, NOISE | values]
    else:
        record[section] = values
    return record


def value_of(record: RunRecord, section: str, key: str) -> Any:
    rows = record.noise.epochs if section == "noise.epochs" else [getattr(record, section)]
    (value,) = {getattr(row, key) for row in rows or []}
    return value


@pytest.mark.parametrize(("section", "old", "new"), PAIRS)
def test_an_old_key_is_read_and_rewritten_by_its_new_name(section, old, new, tmp_path):
    write_record(tmp_path, with_values(section, {old: 0.25}))
    record = RunRecord.read(tmp_path)
    assert value_of(record, section, new) == 0.25
    record.write(tmp_path)
    text = (tmp_path / "run.json").read_text()
    assert f'"{new}": 0.25' in text and f'"{old}"' not in text


@pytest.mark.parametrize(("section", "old", "new"), PAIRS)
def test_the_new_name_wins_where_a_record_has_both(section, old, new, tmp_path):
    write_record(tmp_path, with_values(section, {old: 0.25, new: 0.5}))
    assert value_of(RunRecord.read(tmp_path), section, new) == 0.5


@pytest.mark.parametrize(("section", "old", "new"), PAIRS)
def test_the_schema_has_the_new_name_only(section, old, new):
    names = STRUCTS[section].__struct_fields__
    assert new in names and old not in names


@pytest.mark.parametrize("timer", ["training", "LapTimer"])
def test_the_reason_for_a_missing_figure_is_found_by_the_new_name(timer, tmp_path):
    record = new_record() | {"missing": {"peak.achieved_fraction": "no count", "breakdown": "no warm-up"}}
    record["lap"]["timer"] = timer
    write_record(tmp_path, record)
    assert read_record(tmp_path)["missing"] == {"peak.mfu": "no count", "breakdown": "no warm-up"}


@pytest.mark.parametrize("content", [None, 1, "x", [], [1], {"epochs": 1}, {"epochs": [None]}])
def test_sections_of_other_types_are_left_for_the_reader_to_report(content, tmp_path):
    record = new_record() | {name.partition(".")[0]: content for name in RENAMED_FIGURES}
    write_record(tmp_path, record)
    assert json.dumps(read_record(tmp_path), sort_keys=True) == json.dumps(record, sort_keys=True)


def test_a_value_of_a_wrong_type_is_reported_by_its_new_name(tmp_path):
    write_record(tmp_path, with_values("peak", {"achieved_fraction": "much"}))
    with pytest.raises(ValueError, match=r"peak\.mfu is much"):
        RunRecord.read(tmp_path)
