"""The line that a terminal shows while a command starts."""

import io
import os
import signal
import subprocess
import sys
from contextlib import redirect_stdout

import pytest

from laptime import starting
from tests.support.terminal import Terminal

# What a terminal executes when the line is erased.
ERASE = "\r\x1b[2K"


class ATerminal(io.StringIO):
    def isatty(self):
        return True


def terminals(monkeypatch):
    """Make both streams terminals. Called by each test, because pytest sets its own streams after the fixtures."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(starting.atexit, "register", lambda function: None)
    both = ATerminal(), ATerminal()
    monkeypatch.setattr(sys, "stdout", both[0])
    monkeypatch.setattr(sys, "stderr", both[1])
    return both


@pytest.mark.unit
@pytest.mark.parametrize("to_stderr", [True, False])
def test_the_first_output_replaces_the_line(monkeypatch, to_stderr):
    stdout, stderr = terminals(monkeypatch)
    starting.announce(["model=cnn"])
    assert stderr.getvalue() == "laptime: starting ..."
    print("first", file=sys.stderr if to_stderr else sys.stdout)
    assert (sys.stdout, sys.stderr) == (stdout, stderr)
    print("second", file=sys.stderr)
    assert stderr.getvalue() == f"laptime: starting ...{ERASE}" + ("first\n" if to_stderr else "") + "second\n"
    assert stdout.getvalue() == ("" if to_stderr else "first\n")


@pytest.mark.unit
def test_a_stream_that_somebody_has_replaced_stays(monkeypatch):
    streams = terminals(monkeypatch)
    starting.announce([])
    with redirect_stdout(io.StringIO()) as redirected:
        print("note", file=sys.stderr)
        print("text")
    assert redirected.getvalue() == "text\n" and streams[0].getvalue() == ""
    print("later")
    assert streams[0].getvalue() == "later\n" and streams[1].getvalue().count(ERASE) == 1


@pytest.mark.unit
@pytest.mark.parametrize("arguments", [["--version"], ["--shell-completion", "query=bash"]])
def test_no_line_for_output_that_comes_at_once(monkeypatch, arguments):
    streams = terminals(monkeypatch)
    starting.announce(arguments)
    assert streams[1].getvalue() == "" and sys.stderr is streams[1]


@pytest.mark.unit
def test_no_line_where_it_cannot_be_erased(monkeypatch):
    streams = terminals(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    starting.announce([])
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    starting.announce([])
    monkeypatch.setattr(sys, "stderr", None)
    starting.announce([])
    assert streams[1].getvalue() == ""


@pytest.mark.unit
def test_signals_end_the_process_until_the_command_takes_over(monkeypatch):
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    _, stderr = terminals(monkeypatch)
    codes = []
    monkeypatch.setattr(starting.os, "_exit", codes.append)
    try:
        for signum, handler in usual.items():
            signal.signal(signum, handler)
        starting.announce([])
        for signum in usual:
            signal.raise_signal(signum)
        starting.hand_over()
        assert {signum: signal.getsignal(signum) for signum in usual} == usual
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    assert codes == [130, 143] and stderr.getvalue() == f"laptime: starting ...{ERASE}"


@pytest.mark.unit
def test_the_line_is_erased_before_another_process_writes(monkeypatch):
    streams = terminals(monkeypatch)
    starting.announce([])
    starting.erase()
    starting.hand_over()
    assert streams[1].getvalue() == f"laptime: starting ...{ERASE}" and (sys.stdout, sys.stderr) == streams


@pytest.mark.soak
def test_the_forkserver_ignores_ctrl_c_while_it_loads():
    code = """
import os, signal, sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "filelock":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
import laptime.runner.preloaded
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_command_shows_the_line_before_it_loads_anything(work_folder):
    """On a real terminal; the streams of a pipe get no such line."""
    command = [sys.executable, "-X", "importtime", "-m", "laptime", "model=cn"]
    environment = os.environ | {"TERM": "xterm"}
    with Terminal() as terminal:
        subprocess.run(command, stdout=terminal.command_fd, stderr=terminal.command_fd, env=environment, check=False)
    before, _, after = terminal.text.partition("laptime: starting ...")
    assert after.count("error: model=cn: no such option.") == 1
    assert "| hydra" not in before and "| hydra" in after.replace(" ", "").replace("|", "| ")
    piped = subprocess.run(command[:1] + command[3:], capture_output=True, text=True, env=environment, check=False)
    assert piped.stderr.startswith("error: model=cn") and piped.stdout == ""
