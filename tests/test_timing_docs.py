"""The pages about timing your own training: their code prints what they show, and the names in them exist."""

import ast
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest

import laptime
from tests.support import documents, processes
from tests.support.documents import ROOT, read

PAGES = ["docs/lightning.md", "docs/loops.md", "docs/transformers.md"]
OVERVIEW = "docs/own_training.md"
# The scripts that the pages show, and the document that shows them.
SCRIPTS = {
    name: page
    for page in PAGES
    for name in documents.shown_files(page)
    if name.endswith(".py") and name != "ddp_training.py"
}
# Torch's threads would wait for each other, because other tests use the cores.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


def shown_output(document: str, script: str) -> list[str]:
    """The output of a script as a document shows it."""
    match = re.search(rf"`python {script}` prints.*\n\n((?:    .*\n)+)", read(document))
    assert match is not None, script
    return whole_lines(match[1])


def whole_lines(text: str) -> list[str]:
    """Laptime's lines in an output. Lines that a document wraps are joined."""
    joined = re.sub(r"\n +(?! |laptime: )", " ", text)
    return [line.strip() for line in joined.splitlines() if line.strip().startswith("laptime: ")]


def form(line: str) -> str:
    """A line without its figures. A line whose words depend on the measurement is reduced to one word."""
    match = re.match(r"laptime: .*?\b(step time|MFU|quality|results)\b", line)
    if match:
        return match[1]
    return re.sub(r"[\d.,]+", "#", re.sub(r"  [\d.]+ s excluded|  (about|less than) \d+ \w+ remaining", "", line))


def completed(folder: Path) -> list[dict[str, Any]]:
    records = [json.loads(path.read_text()) for path in folder.rglob("run.json")]
    assert all(record["status"] == "completed" for record in records)
    return records


@pytest.mark.parametrize(
    "script",
    [pytest.param(name, marks=() if "loop" in name else pytest.mark.soak) for name in SCRIPTS],
)
def test_code_of_a_page_prints_the_shown_output(script, work_folder):
    documents.write_files(SCRIPTS[script], work_folder)
    done = processes.run(script=work_folder / script, cwd=work_folder, environment=ENVIRONMENT)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    printed = whole_lines(done.stderr)
    assert list(map(form, printed)) == list(map(form, shown_output(SCRIPTS[script], script)))
    (record,) = completed(work_folder)
    assert record["timing"]["samples_per_s"] and record["breakdown"]["step_s"] and record["model"]["flops_per_batch"]
    assert record["seed"] == 1
    assert (record["timing"]["tokens_per_s"] is None) == ("timing.tokens_per_s" in record["missing"])
    assert len(laptime.load("laptime_runs").runs) == 1


def test_the_readme_shows_the_output_of_the_page():
    text = read("README.md").partition("## Time your own training")[2].partition("\n## ")[0]
    block = re.findall(r"(?:^    .*\n)+", text, re.MULTILINE)[-1]
    assert whole_lines(block) == shown_output("docs/lightning.md", "lightning_training.py")


@pytest.mark.soak
def test_the_code_for_several_ranks_writes_one_run(work_folder):
    documents.write_files("docs/loops.md", work_folder)
    done = processes.run(
        "--standalone", "--nproc-per-node", 2, work_folder / "ddp_training.py", module="torch.distributed.run",
        real=True, cwd=work_folder, environment=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    (record,) = completed(work_folder)
    assert record["strategy"]["world_size"] == 2 and record["communication"]["exposed_s"] is not None


# Names in the documents exist in the code.


@pytest.mark.unit
@pytest.mark.parametrize("document", ["README.md", OVERVIEW, *PAGES])
def test_shown_calls_match_the_signatures(document):
    """Includes code that is not a complete script."""
    arguments = r"\(([^()]*(?:\([^()]*\)[^()]*)*)\)"
    calls = re.findall(rf"laptime\.(LapTimer|LapTimerCallback|laps|Laps){arguments}", read(document))
    assert calls
    for name, shown in calls:
        call = ast.parse(f"f({shown.removesuffix(', ...').replace('=...', '=1')})", mode="eval").body
        assert isinstance(call, ast.Call)
        kind = laptime.Laps if name == "laps" else getattr(laptime, name)
        inspect.signature(kind).bind(*call.args, **{str(keyword.arg): None for keyword in call.keywords})


@pytest.mark.unit
def test_the_tables_list_all_arguments():
    listed: list[set[str]] = []
    for table in re.findall(r"^\| argument \|.*\n\|[-|]+\n((?:\|.*\n)+)", read(OVERVIEW), re.MULTILINE):
        cells = [row.split("|")[1] for row in table.splitlines()]
        listed.append({name for cell in cells for name in re.findall(r"`(\w+)`", cell)})
    shared, loop_arguments = listed
    for kind in (laptime.LapTimer, laptime.LapTimerCallback):
        assert set(inspect.signature(kind).parameters) == shared
    assert set(inspect.signature(laptime.Laps).parameters) == shared | loop_arguments | {"loader"}


@pytest.mark.unit
def test_messages_in_the_table_exist_in_the_code():
    files = [*(ROOT / "src/laptime/hooks").glob("*.py"), ROOT / "src/laptime/record/directory.py"]
    texts = [
        node.value
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    (table,) = re.findall(r"^\| message \|.*\n\|[-|]+\n((?:\|.*\n)+)", read(OVERVIEW), re.MULTILINE)
    messages = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(messages) > 10
    assert [message for message in messages if not any(message in text for text in texts)] == []
