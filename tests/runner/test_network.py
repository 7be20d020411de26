"""A run uses no network beyond this machine. An audit hook in each process records its connections."""

import os
from pathlib import Path

import pytest
from tests.support import processes
from tests.support.processes import TRAIN
from tests.support.settings import TINY

from laptime.record.files import read_record

SUPPORT = Path(processes.__file__).parent
# With all defaults, because any of them could use the network.
QUICK = ["dataset.limit=1000", "training.epochs=1"]


@pytest.fixture
def asked(work_folder):
    """asked(subject, *arguments): what a script's or module's processes asked of the network.

    With `real`, a new interpreter and all that it starts have the hook from their start on, imports included.
    """

    def run(subject: str | Path, *arguments: str, real: bool = False) -> list[str]:
        log = work_folder / "asked"
        path = os.pathsep.join([str(SUPPORT / "hook"), os.environ["PYTHONPATH"]])
        environment = {"ASKED": str(log), "PYTHONPATH": path}
        script, words = (subject, arguments) if real else (SUPPORT / "scripts/audited.py", (str(subject), *arguments))
        done = processes.run(*words, script=script, environment=environment, real=real)
        assert done.returncode == 0, done.stderr
        assert "Tip" not in done.stderr + done.stdout and "lightning.ai" not in done.stderr + done.stdout
        return log.read_text().splitlines() if log.exists() else []

    return run


def is_local(line: str) -> bool:
    """Whether a line is about loopback, a Unix socket, or a UDP socket that looks up an address without sending."""
    return any(place in line for place in ("'127.0.0.1'", "'localhost'", "'::1'", "b'\\\\x00", "connect '/", "bind '/"))


@pytest.mark.parametrize("real", [True, False], ids=["new interpreter", "fork"])
def test_the_audit_hook_sees_connections_of_child_processes(real, asked):
    lines = asked(SUPPORT / "scripts/asks_the_network.py", real=real)
    assert lines == ["socket.connect ('10.9.8.7', 9)", "socket.connect ('10.9.8.7', 10)"]


@pytest.mark.soak
@pytest.mark.parametrize("real", [pytest.param(True, marks=pytest.mark.soak), False], ids=["new interpreter", "fork"])
def test_a_sweep_and_its_report_use_no_network(real, asked, work_folder):
    """In new interpreters, so that imports are covered, too."""
    arguments = [
        "-m",
        *TINY,
        "training.epochs=1",
        "strategy.world_size=1,2",
        "logger=tensorboard",
        "hydra.sweep.dir=sweep",
    ]
    lines = asked(TRAIN, *arguments, real=real)
    for number in ("0", "1"):
        assert read_record(work_folder / "sweep" / number)["status"] == "completed"
    assert (work_folder / "sweep/summary/report.html").exists()
    assert lines, "ranks meet"
    lines = asked("laptime.analysis", "sweep")
    lines = asked("laptime.watch", "sweep", "--once")
    assert [line for line in lines if not is_local(line)] == []


@pytest.mark.parametrize("more", [[], ["strategy.world_size=2"], ["dataset.pipeline=workers", "profiler=simple"]])
def test_a_run_uses_no_network(more, asked, work_folder):
    lines = asked(TRAIN, *QUICK, *more, "hydra.run.dir=run")
    assert read_record(work_folder / "run")["status"] == "completed"
    assert [line for line in lines if not is_local(line)] == []
    if "strategy.world_size=2" in more:
        assert lines, "ranks meet"
