"""benchmarks/accelerator.py, the self-test of a device, with the CPU in place of an accelerator."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.support import processes
from tests.support.processes import until

BENCHMARKS = processes.ROOT / "benchmarks"
SCRIPT = BENCHMARKS / "accelerator.py"
if str(BENCHMARKS) not in sys.path:
    sys.path.append(str(BENCHMARKS))

import selftest_parts  # noqa: E402  (of user_classes)

from selftest import page  # noqa: E402
from selftest import processes as part_processes  # noqa: E402
from selftest.part import Check, Ended, Figure, Part, Remark, Result, Setting  # noqa: E402
from selftest.parts import PARTS  # noqa: E402


@pytest.fixture
def run_part(work_folder):
    """run_part(name, limit_s): the result of the part that is a function of that name in selftest_parts."""

    def run(name: str, limit_s: float = processes.DEADLINE_S) -> Result:
        part = Part(name, "for tests", getattr(selftest_parts, name))
        return part_processes.run(part, Setting("cpu", 1, True, str(work_folder / name)), limit_s)

    return run


def test_without_an_accelerator_the_error_names_rehearse(work_folder):
    done = processes.run(script=SCRIPT)
    assert done.returncode == 2
    assert "--rehearse" in done.stderr and len(done.stderr.splitlines()) == 1
    assert list(work_folder.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--only", "memry"],
        ["--only", "memory,memry"],
        ["--minutes", "soon"],
        ["--minutes", "0"],
        ["--out", ""],
        ["--x"],
    ],
)  # fmt: skip
def test_wrong_options_are_refused(arguments, work_folder):
    done = processes.run("--rehearse", *arguments, script=SCRIPT)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert list(work_folder.iterdir()) == []


def test_results_of_a_part_survive_failures_and_crashes(run_part):
    assert run_part("passes").status == "pass"
    failed, skipped = run_part("fails"), run_part("skips")
    assert (failed.status, failed.why) == ("fail", "one: 1 is not 2")
    assert (skipped.status, skipped.why) == ("skipped", "there is nothing to try")
    raised, killed = run_part("raises"), run_part("is_killed")
    assert (raised.status, raised.why) == ("fail", "RuntimeError: broken on purpose")
    assert (killed.status, killed.why) == ("fail", "its process was killed by SIGKILL")
    assert any("broken on purpose" in line for line in raised.output) and failed.output == []
    for result in (raised, killed):
        assert result.checks == [Check("before", "pass", "it was noted")]
        assert result.figures == [Figure("before", 1.5, "s")]


def test_checks_that_need_a_missing_package_are_skipped(run_part):
    nothing, rest = run_part("needs_a_package"), run_part("needs_a_package_at_its_end")
    assert (nothing.status, nothing.why) == ("skipped", "no_such_package is not installed")
    assert rest.status == "pass" and "no_such_package is not installed" in rest.why


def test_a_failure_on_a_busy_device_names_the_memory_in_use(run_part):
    failed, noted = run_part("fails_on_a_busy_device"), run_part("looks_at_a_busy_device")
    assert failed.status == "fail"
    assert failed.why.startswith("RuntimeError: out of memory") and "60.0 of the device's 80.0 GB" in failed.why
    assert noted.status == "pass" and "75%" in noted.why
    assert Figure("device memory that other processes use", 60.0, "GB") in noted.figures


@pytest.mark.parametrize("out", ["file", "file/folder", "/proc/folder", "taken"])
def test_an_unwritable_output_folder_is_refused_before_the_first_part(out, work_folder):
    Path("file").touch()
    Path("taken").mkdir()
    Path("taken/accelerator.json").touch()
    done = processes.run("--rehearse", "--only", "copies", "--out", out, script=SCRIPT)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and f"--out {out}" in done.stderr


@pytest.mark.soak
def test_a_hanging_part_is_killed_with_its_children(run_part, work_folder):
    result = run_part("hangs", limit_s=30.0)
    assert result.status == "fail" and "30 s" in result.why
    child = int((work_folder / "hangs/child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_remaining_parts_are_skipped_after_the_time_limit(work_folder):
    done = processes.run("--rehearse", "--only", "copies", "--minutes", "0.01", "--out", "out", script=SCRIPT)
    assert done.returncode == 0, done.stderr
    (part,) = json.loads(Path("out/accelerator.json").read_text())["parts"]
    assert part["status"] == "skipped" and "0.01 minutes" in part["why"]
    assert "copies" in done.stdout and "skipped" in done.stdout


@pytest.mark.soak
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_results_are_written_after_a_signal(signum, start, work_folder):
    arguments = ["--rehearse", "--only", "memory_in_use", "models", "--out", "out"]
    process = start(*arguments, script=SCRIPT, new_session=True, environment={"PYTHONUNBUFFERED": "1"})
    until(lambda: process.stdout.readline().startswith("memory_in_use"), process)
    assert len(json.loads(Path("out/accelerator.json").read_text())["parts"]) == 1  # written after each part
    os.killpg(process.pid, signum)  # as a terminal does
    errors = process.communicate()[1]
    assert process.returncode == 128 + signum, errors
    assert "Traceback" not in errors
    written = json.loads(Path("out/accelerator.json").read_text())
    assert not written["complete"]
    assert [part["name"] for part in written["parts"]] == ["memory_in_use"]


def test_a_signal_during_the_imports_ends_the_script_silently(start, work_folder):
    """The script sets its signal handlers before the slow imports."""
    before_imports, _ = SCRIPT.read_text().split("# Import this checkout's Laptime", 1)
    Path("first.py").write_text(f"{before_imports}print('ready', flush=True)\ntime.sleep(10000)\n")
    process = start(script=Path("first.py").absolute(), new_session=True)
    until(lambda: process.stdout.readline().startswith("ready"), process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate() == ("", "")
    assert process.returncode == 130


def test_the_self_test_continues_if_its_output_cannot_be_written(work_folder):
    with Path("/dev/full").open("w") as full:
        done = processes.run("--rehearse", "--only", "copies", "--out", "out", script=SCRIPT, stdout=full)
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("out/accelerator.json").read_text())["complete"]


def test_the_page_names_no_user_folder_or_secret(work_folder, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setattr(page.getpass, "getuser", lambda: "somebody")
    monkeypatch.setattr(page.platform, "node", lambda: "secret-lab-7")
    text = f"/home/somebody/x on secret-lab-7 in {Path.cwd()}/runs, /mnt/acme/set with hf_{'a' * 30} | and\nmore"
    result = Result("models", "every model")
    result.checks, result.remarks, result.output = [Check("model=cnn", "fail", text)], [Remark(text)], [text]
    result.conclude(Ended())
    page.write(Path(), "2026-11-29T10:11:12", True, page.machine("cpu"), [result], complete=True)
    for name in ("accelerator.json", "accelerator.md"):
        text = Path(name).read_text()
        for hidden in ("somebody", "secret-lab-7", str(work_folder), "hf_aaa", "acme"):
            assert hidden not in text, (name, hidden)
    table = [line for line in Path("accelerator.md").read_text().splitlines() if line.startswith("| models ")]
    assert len(table) == 1 and len(re.split(r"(?<!\\)\|", table[0])) == 7


def test_a_user_named_like_an_option_is_only_hidden_in_free_text(monkeypatch, work_folder):
    monkeypatch.setattr(page.getpass, "getuser", lambda: "adam")
    monkeypatch.setattr(page.platform, "node", lambda: "cuda.lan")
    result = Result("optimizers", "every optimizer")
    result.checks = [Check("optimizer=adam", "fail", "adam on cuda: adamw, cuda.lan")]
    result.conclude(Ended())
    page.write(Path(), "2026-11-29T10:11:12", True, page.machine("cpu"), [result], complete=True)
    (part,) = json.loads(Path("accelerator.json").read_text())["parts"]
    assert part["checks"][0] == {
        "what": "optimizer=adam", "status": "fail", "detail": "<user> on <machine>: adamw, <machine>"
    }  # fmt: skip


@pytest.mark.unit
def test_a_part_with_only_skipped_checks_is_skipped():
    result = Result("ranks", "ranks")
    result.checks = [Check("several ranks", "skipped", "one device is here")]
    result.conclude(Ended())
    assert (result.status, result.why) == ("skipped", "one device is here")
    result.checks.append(Check("one rank", "pass", "equal"))
    result.conclude(Ended())
    assert (result.status, result.why) == ("pass", None)


@pytest.mark.soak
def test_a_rehearsal_passes(work_folder):
    done = processes.run("--rehearse", "--minutes", "15", "--out", "out", script=SCRIPT, timeout=1000)
    assert done.returncode == 0, done.stdout
    written = json.loads(Path("out/accelerator.json").read_text())
    assert written["complete"] and written["rehearsal"]
    assert [part["name"] for part in written["parts"]] == [part.name for part in PARTS]
    skipped = {part["name"] for part in written["parts"] if part["status"] == "skipped"}
    assert skipped <= {"memory_in_use"}
    assert all(part["figures"] or part["checks"] for part in written["parts"] if part["status"] == "pass")
    assert str(work_folder) not in Path("out/accelerator.md").read_text()


@pytest.mark.soak
@pytest.mark.parametrize("fault", ["unsynchronized", "never_synchronized", "memory_of_one_epoch", "wrong_weights"])
def test_a_fault_of_the_device_fails_its_part(fault, run_part):
    """Each part fails if the device has the fault that the part tests for."""
    assert run_part(f"with_{fault}").status == "fail"


@pytest.mark.soak
def test_other_random_numbers_do_not_change_the_result(run_part):
    """An accelerator draws other random numbers than the CPU, so the compared networks must not use any."""
    result = run_part("models_with_other_random_numbers", limit_s=600)
    assert result.status == "pass", result.why
