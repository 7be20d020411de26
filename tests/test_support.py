"""The support of other tests: commands from the warm server, waiting with a deadline, and the hooks in conftest.py."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import conftest
from tests.support import processes
from tests.support.processes import run, start, until

REPORTS = """
import json, os, resource, sys
print(json.dumps({
    "argv": sys.argv, "cwd": os.getcwd(), "color": os.environ.get("COLOR"), "name": __name__,
    "path": sys.path[0], "leads": os.getsid(0) == os.getpid(), "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    "torch": "torch" in sys.modules, "orig": sys.orig_argv[1:], "stdin": sys.stdin.read(), "umask": os.umask(0o022),
}))
print("to stderr", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def script(work_folder):
    (work_folder / "folder").mkdir()
    (work_folder / "folder/reports.py").write_text(REPORTS)
    return work_folder / "folder/reports.py"


@pytest.mark.parametrize("real", [False, True], ids=["forked", "real"])
def test_a_forked_command_behaves_like_a_new_interpreter(real, script, work_folder):
    settings = {"environment": {"COLOR": "red"}, "new_session": True, "limits": {resource.RLIMIT_NOFILE: 100}}
    done = run("3", "two words", script=script, real=real, **settings)
    assert done.returncode == 3 and done.stderr == "to stderr\n"
    reported = json.loads(done.stdout)
    assert reported.pop("torch") is not real
    assert reported == {
        "argv": [str(script), "3", "two words"], "cwd": str(work_folder), "color": "red", "name": "__main__",
        "path": str(script.parent), "leads": True, "files": 100, "orig": [str(script), "3", "two words"], "stdin": "",
        "umask": 0o022,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("raise ValueError('broken')", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import atexit; atexit.register(print, 'at exit')", 0),
        ("import sys; sys.exit('a message')", 1),
        ("import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()", 0),
    ],
)
def test_a_forked_command_ends_like_a_new_interpreter(code, expected, work_folder):
    (work_folder / "ends.py").write_text(code)
    forked, real = (run(script=work_folder / "ends.py", real=real) for real in (False, True))
    assert forked.returncode == real.returncode == expected
    assert forked.stdout == real.stdout
    assert forked.stderr.splitlines()[-1:] == real.stderr.splitlines()[-1:]


@pytest.mark.soak
def test_signals_reach_a_forked_command_and_its_ranks_server_ends_with_it(start, work_folder):
    process = start("strategy.world_size=2", "training.epochs=100000", *conftest.QUICK, "hydra.run.dir=run")
    until(lambda: Path("run/epochs.csv").exists(), process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, errors


def test_until_fails_with_the_stderr_of_a_process_that_has_ended(work_folder):
    (work_folder / "ends.py").write_text("import sys; sys.exit('nothing to do')")
    process = start(script=work_folder / "ends.py")
    with pytest.raises(AssertionError, match=r"exit code 1\nnothing to do"):
        until(lambda: False, process)


def test_until_kills_the_process_after_its_deadline(work_folder):
    (work_folder / "sleeps.py").write_text("import time; time.sleep(1000)")
    process = start(script=work_folder / "sleeps.py")
    with pytest.raises(AssertionError, match=r"did not hold within 0\.1 s"):
        until(lambda: False, process, seconds=0.1)
    assert process.wait() == -signal.SIGKILL


def test_run_times_out_if_the_command_does_not_end(work_folder):
    (work_folder / "sleeps.py").write_text("import time; time.sleep(1000)")
    with pytest.raises(subprocess.TimeoutExpired):
        run(script=work_folder / "sleeps.py", timeout=0.2)


@pytest.mark.unit
def test_a_unit_test_cannot_start_a_process():
    for start_process in (lambda: subprocess.run([sys.executable, "-V"]), os.fork, start):
        with pytest.raises(AssertionError, match="a test marked unit must not start a process"):
            start_process()


@pytest.mark.unit
@pytest.mark.parametrize(
    ("arguments", "options", "expected"),
    [
        ((), {}, 3),
        (("tests/analysis",), {}, 3),
        (("-m", "unit"), {}, 3),
        (("tests/test_cli.py::test_x",), {}, None),
        (("tests/test_cli.py",), {}, None),
        (("--pdb",), {"usepdb": True}, None),
        (("-s",), {"capture": "no"}, None),
        (("-k", "gate"), {"keyword": "gate"}, None),
        (("--lf",), {"lf": True}, None),
        (("-n", "0"), {"numprocesses": 0}, 0),
    ],
)
def test_whole_folders_run_in_three_processes_and_selected_tests_in_one(arguments, options, expected):
    names = ("usepdb", "trace", "keyword", "lf", "failedfirst", "stepwise", "collectonly", "numprocesses")
    option = SimpleNamespace(**(dict.fromkeys(names) | {"capture": "fd", "dist": "no"} | options))
    conftest.pytest_cmdline_main(SimpleNamespace(invocation_params=SimpleNamespace(args=arguments), option=option))
    assert option.numprocesses == expected


ALONE = """
import time
from pathlib import Path
import pytest

@pytest.mark.parametrize("number", range(6))
{mark}
def test_{name}(number):
    log = Path({log!r})
    with log.open("a") as file:
        file.write("{name} begins\\n")
    time.sleep(0.05)
    with log.open("a") as file:
        file.write("{name} ends\\n")
"""


def test_xdist_workers_start_no_further_processes():
    option = SimpleNamespace(numprocesses=None)
    conftest.pytest_cmdline_main(
        SimpleNamespace(workerinput={}, invocation_params=SimpleNamespace(args=()), option=option)
    )
    assert option.numprocesses is None


@pytest.mark.soak
def test_no_other_test_runs_beside_one_that_is_marked_alone(work_folder):
    hooks = "from tests.conftest import pytest_runtest_protocol\n"
    (work_folder / "conftest.py").write_text(f"import sys; sys.path.insert(0, {str(processes.ROOT)!r})\n{hooks}")
    (work_folder / "pytest.ini").write_text("[pytest]\nmarkers =\n    alone\n")
    log = work_folder / "log"
    for name, mark in (("other", ""), ("alone", "@pytest.mark.alone")):
        (work_folder / f"test_{name}.py").write_text(ALONE.format(name=name, mark=mark, log=str(log)))
    done = run("-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider", module="pytest", real=True)
    assert done.returncode == 0, done.stdout
    lines = log.read_text().split("\n")[:-1]
    assert len(lines) == 24
    for index, line in enumerate(lines):
        if line == "alone begins":
            assert lines[index + 1] == "alone ends"


def test_a_test_that_changes_a_shared_run_fails_the_session(trained, tmp_path_factory):
    generator = conftest.trained.__wrapped__ if hasattr(conftest.trained, "__wrapped__") else None
    assert generator is not None
    session = generator(tmp_path_factory)
    shared = next(session)(*conftest.QUICK, "dataset.limit=200", "training.epochs=1")
    (shared / "train.log").write_text("changed")
    with pytest.raises(AssertionError, match="a test changed a shared run"):
        next(session)
