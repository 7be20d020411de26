"""What the documents name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMED = sorted(set(re.findall(r"`(test_\w+)`", (ROOT / "docs/RELIABILITY.md").read_text())))
DOCUMENTS = ["README.md", "docs/RELIABILITY.md"]


def test_every_test_that_the_reliability_table_names_is_there():
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    assert len(NAMED) > 30
    assert set(NAMED) <= defined


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_a_document_links_to_is_there(document):
    text = (ROOT / document).read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if "://" not in link]
    scripts = re.findall(r"python (benchmarks/\w+\.py)", text)
    assert links or scripts
    for link in links:
        assert ((ROOT / document).parent / link).exists(), link
    for script in scripts:
        assert (ROOT / script).exists(), script


def test_every_benchmark_is_explained():
    explained = set(re.findall(r"^\| `(\w+\.py)`", (ROOT / "benchmarks/README.md").read_text(), re.MULTILINE))
    assert explained == {path.name for path in (ROOT / "benchmarks").glob("*.py")} - {"ratios.py"}
