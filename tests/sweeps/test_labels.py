"""Labels of runs as names of folders, whatever was swept."""

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
def test_a_label_makes_a_folder_whatever_its_length_and_characters(text, length, work_folder):
    name = folder_name(f"root={text * length}")
    Path(name).mkdir()
    assert [path.name for path in Path().iterdir()] == [name] and len(os.fsencode(name)) <= LONGEST_BYTES
    assert folder_name(name) == name, "as where a sweep is resumed"


@pytest.mark.unit
@pytest.mark.parametrize("text", TEXTS)
def test_labels_that_are_cut_stay_apart(text):
    names = {folder_name(f"root={text * length}{end}") for length in (300, 301) for end in ("", "1", "2")}
    assert len(names) == 6


@pytest.mark.unit
@pytest.mark.parametrize("label", ["", "ws=2 seed=1", "root=größe", "x" * 100])
def test_a_short_label_is_the_name(label):
    assert folder_name(label) == label


def test_a_sweep_over_long_values_that_are_not_ascii(call):
    """Its runs, one after the other in this process, write into folders named by what was swept."""
    names = [f"{'größe' * 60}/{'例' * 120}{end}" for end in "ab"]
    done = call("-m", *TINY, NO_REPORT, "logger=csv", "training.epochs=1", f"dataset.root={','.join(names)}",
                "hydra.sweep.dir=s")  # fmt: skip
    assert done.returncode == 0, done.stderr
    labels = [read_record(Path("s") / number)["run_label"] for number in "01"]
    assert len(set(labels)) == 2
    assert [[path.parent.name for path in Path("s").glob(f"{n}/csv/*/metrics.csv")] for n in "01"] == [
        [label] for label in labels
    ]
