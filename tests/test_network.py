"""What a run says to the network beyond this machine: nothing. An audit hook in each process notes whom it asks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from laptime.record import read_record

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["dataset.limit=1000", "training.epochs=1"]
# Python loads it in every process that finds it, ranks and data workers included.
HOOK = """
import os, sys

def hook(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        asked = arguments[0] if event.startswith("socket.get") else arguments[1]
        with open(os.environ["ASKED"], "a") as file:
            print(event, repr(asked), file=file)

sys.addaudithook(hook)
"""


@pytest.fixture
def asked(work_folder):
    """asked(*arguments): runs Python with the hook; what its processes asked of the network."""

    def run(*arguments: str) -> list[str]:
        log = work_folder / "asked"
        (work_folder / "hook").mkdir(exist_ok=True)
        (work_folder / "hook" / "sitecustomize.py").write_text(HOOK)
        path = os.pathsep.join([str(work_folder / "hook"), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": path, "ASKED": str(log)},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "Tip" not in done.stderr + done.stdout and "lightning.ai" not in done.stderr + done.stdout
        return log.read_text().splitlines() if log.exists() else []

    return run


def is_local(line: str) -> bool:
    """Loopback, or a socket in the file system, or an interface's address that is asked for without sending."""
    return any(each in line for each in ("'127.0.0.1'", "'localhost'", "'::1'", "b'\\\\x00", "connect '/", "bind '/"))


def test_the_hook_sees_what_is_asked(asked):
    assert asked("-c", "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.connect(('10.9.8.7', 9))") == [
        "socket.connect ('10.9.8.7', 9)"
    ]


@pytest.mark.parametrize("more", [[], ["strategy.world_size=2"], ["dataset.pipeline=workers", "profiler=simple"]])
def test_a_run_asks_nobody_beyond_this_machine(more, asked, work_folder):
    lines = asked(str(ROOT / "train.py"), *QUICK, *more, "hydra.run.dir=run")
    assert read_record(work_folder / "run")["status"] == "completed"
    assert [line for line in lines if not is_local(line)] == []
    if "strategy.world_size=2" in more:
        assert lines, "ranks meet"


def test_a_sweep_and_its_report_ask_nobody(asked, work_folder):
    lines = asked(str(ROOT / "train.py"), "-m", *QUICK, "seed=1,2", "hydra.sweep.dir=sweep")
    lines += asked("-m", "laptime.analysis", "sweep")
    lines += asked("-m", "laptime.watch", "sweep", "--once")
    assert (work_folder / "sweep/summary/report.html").exists()
    assert [line for line in lines if not is_local(line)] == []
