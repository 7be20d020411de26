"""docs/own_task.md: the tests create its files and run its commands."""

import re
from pathlib import Path

import pytest
from tests.support import documents, processes
from tests.support.settings import NO_REPORT, QUICK

from laptime.record.files import read_record

DOCUMENT = "docs/own_task.md"
(BLOCK,) = re.findall(r"```console\n(.*?)```", documents.read(DOCUMENT), re.DOTALL)
RUN, TWO_RANKS, SWEEP, MISTAKE = re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", BLOCK, re.MULTILINE)


def run_command(command: str, folder: Path, *more: str):
    ((words,),) = documents.programs_started([command], folder)
    assert words[0] == "laptime"
    return processes.run(
        *words[1:], *more, module="laptime", cwd=folder, environment={"LAPTIME_ALLOWED_TARGETS": "torchvision.ops"}
    )


@pytest.fixture
def folder(work_folder) -> Path:
    documents.write_files(DOCUMENT, work_folder)
    return work_folder


def test_the_mistake_has_the_shown_message(folder):
    command, message = MISTAKE
    done = run_command(command, folder)
    assert done.returncode == 2 and done.stderr.startswith(message.strip())


@pytest.mark.parametrize(
    "command", [pytest.param(RUN[0], id="one rank"), pytest.param(TWO_RANKS[0], id="two ranks", marks=pytest.mark.soak)]
)
def test_a_run_learns(command, folder):
    done = run_command(command, folder, *QUICK, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    record = read_record(Path("run"))
    assert record["result"]["test_score"] > 0.6
    assert "test accuracy" in done.stdout


@pytest.mark.soak
def test_the_sweep_completes(folder):
    done = run_command(SWEEP[0], folder, *QUICK, NO_REPORT, "hydra.sweep.dir=sweep")
    assert done.returncode == 0, done.stderr
    assert len(list(Path("sweep").glob("*/run.json"))) == 4
