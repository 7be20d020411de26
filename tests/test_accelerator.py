"""benchmarks/accelerator.py: the self-test of a device. Here the CPU stands in for one."""

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
def carry_out(work_folder):
    """carry_out(name of a function in selftest_parts, seconds): the result of that part."""

    def run(name: str, limit_s: float = processes.DEADLINE_S) -> Result:
        part = Part(name, "for tests", getattr(selftest_parts, name))
        return part_processes.run(part, Setting("cpu", 1, True, str(work_folder / name)), limit_s)

    return run


def test_without_an_accelerator_it_names_the_rehearsal(work_folder):
    done = processes.run(script=SCRIPT)
    assert done.returncode == 2
    assert "--rehearse" in done.stderr and len(done.stderr.splitlines()) == 1
    assert list(work_folder.iterdir()) == []


@pytest.mark.parametrize(
    "typed",
    [
        ["--only", "memry"],
        ["--only", "memory,memry"],
        ["--minutes", "soon"],
        ["--minutes", "0"],
        ["--out", ""],
        ["--x"],
    ],
)  # fmt: skip
def test_wrong_options_are_refused(typed, work_folder):
    done = processes.run("--rehearse", *typed, script=SCRIPT)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert list(work_folder.iterdir()) == []


def test_what_a_part_found_is_kept_whatever_becomes_of_it(carry_out):
    assert carry_out("passes").status == "pass"
    failed, skipped = carry_out("fails"), carry_out("skips")
    assert (failed.status, failed.why) == ("fail", "one: 1 is not 2")
    assert (skipped.status, skipped.why) == ("skipped", "there is nothing to try")
    raised, killed = carry_out("raises"), carry_out("is_killed")
    assert (raised.status, raised.why) == ("fail", "RuntimeError: broken on purpose")
    assert (killed.status, killed.why) == ("fail", "its process was killed by SIGKILL")
    assert any("broken on purpose" in line for line in raised.output) and failed.output == []
    for result in (raised, killed):
        assert result.checks == [Check("before", "pass", "it was noted")]
        assert result.figures == [Figure("before", 1.5, "s")]


def test_what_a_missing_package_leaves_untried_is_skipped(carry_out):
    nothing, rest = carry_out("needs_a_package"), carry_out("needs_a_package_at_its_end")
    assert (nothing.status, nothing.why) == ("skipped", "no_such_package is not installed")
    assert rest.status == "pass" and "no_such_package is not installed" in rest.why


def test_a_busy_device_is_named_and_explains_failures(carry_out):
    failed, noted = carry_out("fails_on_a_busy_device"), carry_out("looks_at_a_busy_device")
    assert failed.status == "fail"
    assert failed.why.startswith("RuntimeError: out of memory") and "60.0 of the device's 80.0 GB" in failed.why
    assert noted.status == "pass" and "75%" in noted.why
    assert Figure("device memory that other processes use", 60.0, "GB") in noted.figures


@pytest.mark.parametrize("out", ["file", "file/folder", "/proc/folder", "taken"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_tried(out, work_folder):
    Path("file").touch()
    Path("taken").mkdir()
    Path("taken/accelerator.json").touch()
    done = processes.run("--rehearse", "--only", "copies", "--out", out, script=SCRIPT)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and f"--out {out}" in done.stderr


def test_a_part_that_hangs_is_ended_with_what_it_started(carry_out, work_folder):
    result = carry_out("hangs", limit_s=8.0)
    assert result.status == "fail" and "8 s" in result.why
    child = int((work_folder / "hangs/child").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_time_that_is_over_skips_the_parts_that_are_left(work_folder):
    done = processes.run("--rehearse", "--only", "copies", "--minutes", "0.01", "--out", "out", script=SCRIPT)
    assert done.returncode == 0, done.stderr
    (part,) = json.loads(Path("out/accelerator.json").read_text())["parts"]
    assert part["status"] == "skipped" and "0.01 minutes" in part["why"]
    assert "copies" in done.stdout and "skipped" in done.stdout


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_what_was_done(signum, start, work_folder):
    typed = ["--rehearse", "--only", "memory_in_use", "models", "--out", "out"]
    process = start(*typed, script=SCRIPT, new_session=True, environment={"PYTHONUNBUFFERED": "1"})
    until(lambda: process.stdout.readline().startswith("memory_in_use"), process)
    assert len(json.loads(Path("out/accelerator.json").read_text())["parts"]) == 1  # written after each part
    os.killpg(process.pid, signum)  # as a terminal does
    errors = process.communicate()[1]
    assert process.returncode == 128 + signum, errors
    assert "Traceback" not in errors
    written = json.loads(Path("out/accelerator.json").read_text())
    assert not written["complete"]
    assert [part["name"] for part in written["parts"]] == ["memory_in_use"]


def test_a_signal_while_it_loads_torch_ends_it_in_silence(start, work_folder):
    """Whenever it comes: it is heeded before anything that takes time is imported."""
    before_imports, rest = SCRIPT.read_text().split("# This checkout's Laptime", 1)
    Path("first.py").write_text(f"{before_imports}print('ready', flush=True)\ntime.sleep(10000)\n# {rest}")
    process = start(script=Path("first.py").absolute(), new_session=True)
    until(lambda: process.stdout.readline().startswith("ready"), process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate() == ("", "")
    assert process.returncode == 130


def test_it_goes_on_when_nobody_reads_what_it_prints(work_folder):
    with Path("/dev/full").open("w") as full:
        done = processes.run("--rehearse", "--only", "copies", "--out", "out", script=SCRIPT, stdout=full)
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("out/accelerator.json").read_text())["complete"]


def test_the_page_names_no_user_folder_or_secret(work_folder, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setattr(page.getpass, "getuser", lambda: "somebody")
    monkeypatch.setattr(page.platform, "node", lambda: "secret-lab-7")
    told = f"/home/somebody/x on secret-lab-7 in {Path.cwd()}/runs, /mnt/acme/set with hf_{'a' * 30} | and\nmore"
    result = Result("models", "every model")
    result.checks, result.remarks, result.output = [Check("model=cnn", "fail", told)], [Remark(told)], [told]
    result.conclude(Ended())
    tested = page.machine("cpu")
    page.write(Path(), "2026-11-29T10:11:12", True, tested, [result], complete=True)
    for name in ("accelerator.json", "accelerator.md"):
        text = Path(name).read_text()
        for hidden in ("somebody", "secret-lab-7", str(work_folder), "hf_aaa", "acme"):
            assert hidden not in text, (name, hidden)
    table = [line for line in Path("accelerator.md").read_text().splitlines() if line.startswith("| models ")]
    assert len(table) == 1 and len(re.split(r"(?<!\\)\|", table[0])) == 7


def test_a_name_that_is_a_word_of_the_page_is_hidden_in_free_text_alone(monkeypatch, work_folder):
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
def test_a_part_of_which_nothing_could_be_tried_is_skipped():
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
def test_a_fault_of_the_device_is_found(fault, carry_out):
    """Each part fails when what it looks at is broken."""
    assert carry_out(f"with_{fault}").status == "fail"


@pytest.mark.soak
def test_random_numbers_of_the_device_make_no_difference(carry_out):
    """Those of an accelerator are not the CPU's: nothing in a network that is compared may draw any."""
    result = carry_out("models_with_other_random_numbers", limit_s=600)
    assert result.status == "pass", result.why
