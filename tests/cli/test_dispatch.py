"""The command `laptime`: subcommands, help, suggestions for mistyped words, and how commands name themselves."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support import processes
from tests.support.settings import NO_REPORT, TINY

from laptime.cli import dispatch
from laptime.cli.dispatch import COMMANDS
from laptime.command_line import program, typed_command, usage
from laptime.record.files import read_record

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "laptime"


def run_command(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, capture_output=True, text=True, timeout=processes.DEADLINE_S, check=False)


# Help.


@pytest.mark.unit
@pytest.mark.parametrize("asked", [["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(asked, call):
    shown = call(*asked)
    assert shown.returncode == 0 and shown.stderr == ""
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.summary)}$", shown.stdout, re.MULTILINE)


@pytest.mark.unit
@pytest.mark.parametrize("command", ["", *(name for name in COMMANDS if name != "train")])
def test_help_fits_80_columns_and_names_the_command_as_typed(command, call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    shown = call(*filter(None, [command]), "--help")
    assert shown.returncode == 0
    assert [line for line in shown.stdout.splitlines() if len(line) > 80] == []
    assert shown.stdout.startswith(f"usage: {f'laptime {command}'.rstrip()} ")
    assert "examples:" in shown.stdout
    assert call("help", *filter(None, [command])).stdout == shown.stdout


def test_help_of_train_is_hydras(call):
    shown = call("train", "--help")
    assert shown.returncode == 0
    assert "model: cnn" in shown.stdout and "python train.py" not in shown.stdout
    assert shown.stdout.startswith("usage: laptime ") and "\nexamples:\n" in shown.stdout
    assert "\n\n\n" not in shown.stdout and not shown.stdout.endswith("\n\n")


def test_help_loads_neither_hydra_nor_torch(installed):
    done = run_command(sys.executable, "-X", "importtime", str(installed / "laptime"), "--help")
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.stdout.startswith("usage: laptime ")
    assert "argparse" in modules and not {"torch", "hydra", "omegaconf", "rich", "numpy"} & modules


def test_a_sweep_with_an_unknown_option_is_refused_without_torch(work_folder):
    done = run_command(sys.executable, "-X", "importtime", "-m", "laptime", "-m", "seed=1,2", "model=nope")
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 2 and "error: model=nope" in done.stderr
    assert "hydra" in modules and not {"torch", "pytorch_lightning"} & modules


@pytest.mark.unit
def test_version(call):
    assert re.fullmatch(r"laptime \d+\.\d+.*\n", call("--version").stdout)
    assert call("train", "--version").stdout == call("--version").stdout


@pytest.mark.unit
@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"])
def test_every_command_takes_version(command, call):
    shown = call(command, "--version")
    assert shown.returncode == 0 and re.fullmatch(r"laptime \d.*\n", shown.stdout)


@pytest.mark.parametrize("words", ["--help", "--version", "doctor --help", "--hydra-help", "--info config"])
def test_output_that_nobody_reads_is_no_error(words):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "laptime", *words.split()],
        stdout=writer, stderr=subprocess.PIPE, text=True, timeout=processes.DEADLINE_S, check=False,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.unit
def test_a_long_usage_line_wraps():
    assert usage("laptime evaluate", "run=RUN") == "laptime evaluate run=RUN"
    assert usage("python " + 60 * "x", "run=RUN [key=value ...]").endswith("x\n       run=RUN [key=value ...]")


# Which command the first argument names.


@pytest.mark.unit
@pytest.mark.parametrize(
    ("words", "name", "arguments"),
    [
        ([], "train", []),
        (["model=cnn"], "train", ["model=cnn"]),
        (["-m", "seed=1,2"], "train", ["-m", "seed=1,2"]),
        (["~callbacks.csv"], "train", ["~callbacks.csv"]),
        (["+doctor=1"], "train", ["+doctor=1"]),
        (["doctor=x"], "train", ["doctor=x"]),
        (["train", "model=cnn"], "train", ["model=cnn"]),
        (["--help", "model=cnn"], "train", ["--help", "model=cnn"]),
        (["doctor", "--json"], "doctor", ["--json"]),
        (["analyze", "doctor"], "analyze", ["doctor"]),
        (["help", "watch"], "watch", ["--help"]),
        (["--help", "watch"], "watch", ["--help"]),
        (["-h", "watch"], "watch", ["--help"]),
    ],
)
def test_only_the_first_argument_can_name_a_command(words, name, arguments, monkeypatch, work_folder):
    (work_folder / "doctor").mkdir()
    ran = []
    monkeypatch.setattr(dispatch, "_run_command", lambda name, arguments: ran.append((name, arguments)) or 7)
    with pytest.raises(SystemExit) as end:
        dispatch.main(words)
    assert ran == [(name, arguments)] and end.value.code == 7


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("evalute", ["evalute", "Did you mean evaluate?"]),
        ("analysis latest", ["analysis", "Did you mean analyze?"]),
        ("help tun", ["tun", "Did you mean tune?"]),
        ("zzz", ["zzz", "key=value", "doctor, tune, watch"]),
        ("-m train seed=1,2", ["train", "must come first", "laptime train"]),
        ("train doctor", ["doctor", "must come first"]),
        ("-m laptime", ["laptime", "must be a command or an override"]),
        ("train laptime", ["laptime", "must be an override", "key=value"]),
        ("version", ["version", "Did you mean --version?"]),
        ("-V", ["-V", "Did you mean --version?"]),
        ("watch -V", ["-V", "Did you mean --version?"]),
        ("--help evalute", ["evalute", "Did you mean evaluate?"]),
        ("--", ["--", "followed by overrides"]),
        ("train --", ["--", "followed by overrides"]),
        ("tune", ["Choose batch_size or lr", "laptime tune --help"]),
        ("train --multirum seed=1,2", ["--multirum", "Did you mean --multirun?"]),
        ("train --mutlirun=1", ["--mutlirun", "Did you mean --multirun?"]),
        ("doctor --secnods 3", ["--secnods", "Did you mean --seconds?"]),
        ("doctor now", ["now", "laptime doctor --help"]),
        ("tune --limt 3", ["--limt", "Did you mean --limit?"]),
        ("tune lr --plto=a.png", ["--plto", "Did you mean --plot?"]),
        ("tune bathc_size", ["bathc_size", "Did you mean batch_size?"]),
        ("watch --onse", ["--onse", "Did you mean --once?"]),
        ("watch", ["DIR", "laptime watch --help"]),
        ("analyze latest --basline device=cpu", ["--basline", "Did you mean --baseline?"]),
        ("analyze latest --zzz", ["--zzz", "laptime analyze --help"]),
        ("evaluate run=latest --config-dri x", ["--config-dri", "Did you mean --config-dir?"]),
        ("export", ["run", "laptime export run=latest"]),
        ("evaluate latest", ["latest", "Write run=latest"]),
        ("export latest format=onnx", ["latest", "Write run=latest"]),
    ],
)
def test_a_mistyped_word_is_answered_in_one_line(words, expected, call, work_folder):
    ended = call(*words.split())
    assert ended.returncode == 2 and ended.stdout == ""
    assert re.fullmatch(r"error: .*\n", ended.stderr)
    for text in expected:
        assert text in ended.stderr
    assert list(work_folder.iterdir()) == []


@pytest.mark.unit
@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_a_mistyped_run_is_suggested(command, call, work_folder):
    ended = call(command, "rn=latest")
    assert ended.returncode == 2 and ended.stderr.startswith("error: rn=latest: unknown key. Did you mean run?")


@pytest.mark.unit
@pytest.mark.parametrize("word", ["", " "])
def test_a_blank_argument_is_refused(word, call, work_folder):
    ended = call(word)
    assert ended.returncode == 2 and ended.stderr.startswith(f"error: '{word}': has no key")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistake_shows_its_traceback_on_request(command, call, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="--zzz"):
        call(command, "--zzz")


# How a command names itself.


@pytest.mark.unit
@pytest.mark.parametrize(
    ("argv", "command", "expected"),
    [
        (["/env/bin/laptime", "tune"], "tune", "laptime tune"),
        (["/env/bin/laptime", "tune"], "train", "laptime"),
        (["/env/bin/laptime", "model=cnn"], "train", "laptime"),
        (["/env/bin/laptime", "train"], "train", "laptime train"),
        (["/env/bin/laptime", "--help"], "", "laptime"),
        ([f"{PACKAGE}/__main__.py", "watch"], "watch", "python -m laptime watch"),
        ([f"{PACKAGE}/__main__.py", "seed=1"], "train", "python -m laptime"),
        ([f"{PACKAGE}/analysis/__main__.py"], "analyze", "python -m laptime.analysis"),
        ([f"{PACKAGE}/watch/__main__.py"], "train", "python -m laptime"),
        ([f"{PACKAGE}/evaluate.py"], "evaluate", "python -m laptime.evaluate"),
        ([f"{ROOT}/evaluate.py"], "evaluate", f"python {ROOT}/evaluate.py"),
        ([f"{ROOT}/evaluate.py"], "train", f"python {ROOT}/train.py"),
        ([f"{ROOT}/train.py"], "analyze", "python -m laptime.analysis"),
        (["my_script.py"], "analyze", "laptime analyze"),
    ],
)
def test_a_command_names_itself_as_it_was_typed(argv, command, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python", *argv])
    assert program(command) == expected


@pytest.mark.unit
def test_the_recorded_command_can_be_typed_again(installed, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", f"{installed}/laptime", "train", "seed=1"])
    assert typed_command() == ["laptime", "train", "seed=1"]
    monkeypatch.setattr(sys, "orig_argv", ["/usr/bin/python3", "train.py", "seed=1"])
    assert typed_command() == ["python3", "train.py", "seed=1"]


# Whole commands.


@pytest.mark.soak
def test_an_installed_command_trains_and_is_recorded_as_typed(installed, work_folder):
    done = run_command("laptime", "train", *TINY, "training.epochs=1", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert read_record(work_folder / "run")["command"][:3] == ["laptime", "train", TINY[0]]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("how", "command"),
    [
        ({"module": "laptime"}, "python -m laptime"),
        pytest.param({"script": processes.TRAIN}, f"python {processes.TRAIN}", marks=pytest.mark.soak),
    ],
    ids=["-m laptime", "train.py"],
)
def test_the_hint_to_resume_a_sweep_works_as_printed(how, command, work_folder):
    sweep = ["-m", *TINY, NO_REPORT, "training.epochs=1", "training.batch_size=32,9999", "hydra.sweep.dir=s"]
    done = processes.run(*sweep, **how)
    assert done.returncode == 2, done.stderr
    (hint,) = re.findall("^Resume with: (.*)$", done.stdout, re.MULTILINE)
    python, *words = shlex.split(hint)
    assert [Path(python).name.rstrip("0123456789."), *words] == [*shlex.split(command), "sweep.resume=s"]
    arguments = words[2:] if words[0] == "-m" else words[1:]
    assert "1 of 2 runs to do" in processes.run(*arguments, "sweep.dry_run=true", **how).stdout


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"])
def test_the_older_forms_work(command):
    module = {"analyze": "laptime.analysis"}.get(command, f"laptime.{command}")
    done = processes.run("--help", module=module)
    assert done.returncode == 0, done.stderr
    assert re.match(rf"usage: python\S* -m {module} ", done.stdout)
    if (script := ROOT / f"{command}.py").exists():
        assert re.match(rf"usage: python\S* {script}\s", processes.run("--help", script=script).stdout)


@pytest.mark.soak
def test_torchrun_starts_the_command_by_its_module(work_folder):
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "laptime"]
    for form in (["train"], []):
        done = run_command(*run, *form, *TINY, "training.epochs=1", f"hydra.run.dir=run{len(form)}")
        assert done.returncode == 0, done.stderr
        command = ["torchrun", "--nproc-per-node", "2", "-m", "laptime", *form]
        assert read_record(work_folder / f"run{len(form)}")["command"][: len(command)] == command
