"""Labels of runs as folder names, for any swept values."""

import os
from pathlib import Path

import pytest
from tests.support.settings import NO_REPORT, TINY

from laptime.record.files import read_record
from laptime.runner.job import folder_name

LONGEST_BYTES = 255
TEXTS = ["a", "ä", "例", "🚗", "e\u0301", "/", "\udcff", "\x00"]


@pytest.mark.unit
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("length", [1, 40, 99, 100, 101, 1000])
def test_a_label_of_any_length_and_characters_is_a_valid_folder_name(text, length, work_folder):
    name = folder_name(f"root={text * length}")
    Path(name).mkdir()
    assert [path.name for path in Path().iterdir()] == [name] and len(os.fsencode(name)) <= LONGEST_BYTES
    assert folder_name(name) == name, "idempotent, for resumed sweeps"


@pytest.mark.unit
@pytest.mark.parametrize("text", TEXTS)
def test_truncated_labels_stay_unique(text):
    names = {folder_name(f"root={text * length}{end}") for length in (300, 301) for end in ("", "1", "2")}
    assert len(names) == 6


@pytest.mark.unit
@pytest.mark.parametrize("label", ["", "ws=2 seed=1", "root=größe", "x" * 100])
def test_a_short_label_is_used_unchanged(label):
    assert folder_name(label) == label


def test_a_sweep_over_long_non_ascii_values(call):
    """Its runs write into folders that are named after the swept values."""
    names = [f"{'größe' * 60}/{'例' * 120}{end}" for end in "ab"]
    done = call("-m", *TINY, NO_REPORT, "logger=csv", "training.epochs=1", f"dataset.root={','.join(names)}",
                "hydra.sweep.dir=s")  # fmt: skip
    assert done.returncode == 0, done.stderr
    labels = [read_record(Path("s") / number)["run_label"] for number in "01"]
    assert len(set(labels)) == 2
    assert [[path.parent.name for path in Path("s").glob(f"{n}/csv/*/metrics.csv")] for n in "01"] == [
        [label] for label in labels
    ]
