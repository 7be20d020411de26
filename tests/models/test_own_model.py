"""docs/own_model.md: the tests create its files and run its commands."""

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support import documents, processes

import laptime
from laptime.record.files import read_record

DOCUMENT = "docs/own_model.md"
BLOCKS = re.findall(r"```console\n(.*?)```", documents.read(DOCUMENT), re.DOTALL)
COMMANDS = [
    (command, output)
    for block in BLOCKS
    for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
]
RUNS = [(command, output) for command, output in COMMANDS if "laptime " in command and "error:" not in output]
MISTAKES = [(command, output) for command, output in COMMANDS if "error:" in output]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    documents.write_files(DOCUMENT, folder)
    done = processes.run(script=folder / "make_shapes.py", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def run_command(command: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Runs a command of the page, with its words and variables parsed by a shell."""
    ((words,),) = documents.programs_started([re.sub(r"^PYTHONPATH=\S+ ", "", command)], folder)
    assert words[0] == "laptime"
    environment = {"LAPTIME_ALLOWED_TARGETS": ""}
    if command.startswith("PYTHONPATH="):
        assert command.startswith("PYTHONPATH=$PYTHONPATH:my_conf ")
        environment = {"LAPTIME_ALLOWED_TARGETS": "my_lab", "PYTHONPATH": "my_conf"}  # the page exports the first
    return processes.run(*words[1:], module="laptime", cwd=folder, environment=environment)


def test_the_page_has_its_files_and_commands():
    assert list(documents.shown_files(DOCUMENT)) == [
        "make_shapes.py", "my_conf/my_lab.py", "my_conf/model/tiny.yaml", "my_conf/dataset/shapes.yaml",
        "my_conf/callbacks/mine.yaml", "my_conf/experiment/shapes.yaml",
    ]  # fmt: skip
    assert len(COMMANDS) == len(RUNS) + len(MISTAKES) + 2 == 12
    commands = [command for command, _ in COMMANDS]
    assert commands[0] == "python make_shapes.py" and "export LAPTIME_ALLOWED_TARGETS=my_lab" in commands


@functools.cache
def seen(folder: Path) -> set[str]:
    """The records of the runs."""
    return set()


@pytest.mark.parametrize(
    "command",
    # The sweep has data workers, and each of them imports torch.
    [pytest.param(command, marks=pytest.mark.soak) if " -m " in command else command for command, _ in RUNS],
    ids=[command[:70] for command, _ in RUNS],
)
def test_command_trains(command, folder):
    done = run_command(command, folder)
    assert done.returncode == 0, done.stderr
    assert "best epoch:" in done.stderr and "tinynet on shapes" in done.stdout
    new = set(laptime.load(folder).runs["run"]) - seen(folder)
    assert len(new) == (2 if " -m " in command else 1)
    seen(folder).update(new)
    for run in new:
        record = read_record(folder / run)
        assert record["dataset"]["name"] == "shapes" and record["result"]["test_accuracy"] > 1 / 3
        assert record["dataset"]["num_val"] in (600, 120)  # a fifth of all, or of dataset.limit


@pytest.mark.parametrize(("command", "output"), MISTAKES, ids=[output[:70] for _, output in MISTAKES])
def test_a_mistake_prints_the_line_on_the_page(command, output, folder):
    done = run_command(command, folder)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1:] == output.splitlines()


def test_the_console_script_trains(folder, work_folder):
    """The installed console script, in its own process."""
    script = Path(sys.executable).with_name("laptime")
    if not script.exists():
        pytest.skip("Laptime is not installed beside this interpreter")
    few = ["model=tiny", "dataset=shapes", "training.epochs=1", "dataset.limit=200", "measure.breakdown=false"]
    words = [str(script), "--config-dir", str(folder / "my_conf"), *few, f"dataset.root={folder}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert "tinynet on shapes" in done.stdout
