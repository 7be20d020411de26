"""A locale without Unicode: reports are still written as UTF-8, and the output contains only ASCII."""

import os
import shutil
from pathlib import Path

import pytest

from laptime.config.quoting import quote_for_hydra
from laptime.errors import UserError
from laptime.record.files import read_record
from tests.support import processes
from tests.support.settings import TINY

ASCII = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.soak
@pytest.mark.parametrize(
    "command",
    [["laptime.analysis", "multirun/sweep"], ["laptime", "sweep.resume=latest"]],
    ids=" ".join,
)
def test_tables_and_report_are_written(command, finished_sweep, work_folder):
    sweep = Path("größe/multirun/sweep")
    shutil.copytree(finished_sweep, sweep)
    shutil.rmtree(sweep / "summary", ignore_errors=True)
    module, *arguments = command
    done = processes.run(*arguments, module=module, real=True, environment=ASCII, cwd="größe")
    assert done.returncode == 0 and "error" not in done.stderr.lower(), done.stderr
    assert done.stdout.isascii()
    report = (sweep / "summary/report.html").read_text("utf-8")
    assert not report.isascii() and (sweep / "summary/report.txt").read_text("utf-8")
    assert list((sweep / "summary/tensorboard").rglob("*tfevents*"))


@pytest.mark.soak
@pytest.mark.parametrize(
    "command",
    [
        ["laptime.watch", "sweep", "--once"], ["laptime.doctor"],
        ["laptime.evaluate", "run=sweep/0", "latency.time_limit_s=0.2"],
        ["laptime.export", "run=sweep/0", "format=torch_export"],
        ["laptime", "-m", *TINY, "training.epochs=1", "seed=1,2"],
        ["laptime.tune", "lr", *TINY, "--steps", "20"], ["laptime", "train", "--help"],
    ],
    ids=lambda command: " ".join(command[:2]),
)  # fmt: skip
def test_every_command_runs(command, finished_sweep, work_folder):
    shutil.copytree(finished_sweep, "sweep")
    module, *arguments = command
    done = processes.run(*arguments, module=module, real=True, environment=ASCII)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and "UnicodeEncodeError" not in done.stderr


@pytest.mark.unit
@pytest.mark.parametrize("value", [os.fsdecode(b"gr\xc3"), "a\udcff"])
def test_an_undecodable_argument_is_refused(value):
    with pytest.raises(UserError):
        quote_for_hydra([f"hydra.run.dir={value}"])


@pytest.mark.soak
def test_a_run_in_a_non_ascii_folder_completes(work_folder):
    Path("größe").mkdir()
    arguments = [*TINY, "training.epochs=1", "hydra.run.dir=run"]
    done = processes.run(*arguments, real=True, cwd=work_folder / "größe", environment=ASCII)
    assert done.returncode == 0, done.stderr
    assert read_record(Path("größe/run"))["status"] == "completed"
