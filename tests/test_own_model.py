"""docs/own_model.md: its files are written and its commands typed, as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import laptime
from laptime.record import read_record

PAGE = (Path(__file__).resolve().parents[1] / "docs/own_model.md").read_text()
FILES = [
    (re.findall(r"`([\w/]+\.(?:py|yaml))`", before)[-1], content)
    for before, content in re.findall(r"([^\n]+(?:\n[^\n]+)*)\n\n```(?:python|yaml)\n(.*?)```", PAGE, re.DOTALL)
]
BLOCKS = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
COMMANDS = [
    (command, output)
    for block in BLOCKS
    for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    for name, content in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder / "bin").mkdir()
    for name, code in (("laptime", "-m laptime"), ("python", "")):
        (folder / "bin" / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {code} "$@"\n')
        (folder / "bin" / name).chmod(0o755)
    subprocess.run([sys.executable, "make_shapes.py"], cwd=folder, check=True)
    return folder


def typed(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"LAPTIME_ALLOWED_TARGETS": "my_lab", "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    return subprocess.run(
        ["sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


def test_the_page_has_its_files_and_commands():
    assert [name for name, _ in FILES] == [
        "make_shapes.py", "my_conf/my_lab.py", "my_conf/model/tiny.yaml", "my_conf/dataset/shapes.yaml",
        "my_conf/callbacks/mine.yaml", "my_conf/experiment/shapes.yaml",
    ]  # fmt: skip
    assert len(COMMANDS) == 12


RUNS = [(command, output) for command, output in COMMANDS if "laptime " in command and "error:" not in output]
MISTAKES = [(command, output) for command, output in COMMANDS if "error:" in output]


@pytest.mark.parametrize(("command", "output"), RUNS, ids=[command[:70] for command, _ in RUNS])
def test_command_trains(command, output, folder):
    done = typed(command, folder)
    assert done.returncode == 0, done.stderr
    assert "best epoch:" in done.stderr and "tinynet on shapes" in done.stdout
    newest = laptime.load(folder).runs.sort_values("started_at").iloc[-1]
    record = read_record(Path(newest["run"]))
    assert record["dataset"]["name"] == "shapes" and record["result"]["test_accuracy"] > 1 / 3
    assert record["dataset"]["num_val"] in (600, 120)  # a fifth of all, or of dataset.limit


@pytest.mark.parametrize(("command", "output"), MISTAKES, ids=[output[:70] for _, output in MISTAKES])
def test_mistake_gets_the_line_that_the_page_shows(command, output, folder):
    done = typed(command, folder)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1:] == output.splitlines()
