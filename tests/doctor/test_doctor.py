"""The doctor: its rules on made-up values, its checks on faked devices, the command itself on this machine."""

import json
import os
import signal
import subprocess
import sys
from functools import partial
from io import StringIO
from types import SimpleNamespace

import psutil
import pytest
import torch
from rich.console import Console
from tests.support.processes import until

from laptime.doctor import __main__ as command
from laptime.doctor import checklist, examine, groups, steps
from laptime.doctor.finding import Finding
from laptime.doctor.probe import Noise, _busiest
from laptime.doctor.show import show
from laptime.lap.quality import Quality
from laptime.machine import counters
from laptime.machine.device import usable_cores

GB = 10**9


# The rules of the checklist


@pytest.mark.parametrize(
    ("rule", "accepted", "refused"),
    [
        (partial(checklist.other_processes, num_cores=4, busiest=[]), 0.19, 0.2),
        (checklist.hypervisor, 0.009, 0.01),
        (checklist.power, False, True),
        (checklist.governor, ["performance"] * 2, ["performance", "powersave"]),
        (checklist.frequency, 0.09, 0.1),
        (checklist.temperature, 89.0, 90.0),
        (checklist.quota, 2.0, 1.5),
        (checklist.quota, 1.0, 0.5),
        (partial(checklist.affinity, num_logical=8), 8, 7),
        (partial(checklist.hyper_threads, num_physical=4), 4, 8),
        (partial(checklist.memory, total_bytes=100 * GB), 10 * GB, 9 * GB),
        (partial(checklist.swap, 2 * GB), 0.9, 1.0),
        (checklist.thread_variables, {"OMP_PLACES": "cores"}, {"OMP_NUM_THREADS": "1"}),
        (checklist.wait_policy, {}, {"OMP_WAIT_POLICY": "passive"}),
        (checklist.mps_fallback, False, True),
        (checklist.torch_build, False, True),
    ],
)
def test_a_rule_accepts_one_value_and_refuses_the_next(rule, accepted, refused):
    fine, not_fine = rule(accepted), rule(refused)
    assert (fine.ok, not_fine.ok) == (True, False)
    assert ". " in not_fine.text or ": " in not_fine.text, "says what to do"


@pytest.mark.parametrize(
    "check",
    [
        checklist.other_processes(None, 4, []),
        checklist.hypervisor(None),
        checklist.power(None),
        checklist.governor([]),
        checklist.frequency(None),
        checklist.temperature(None),
        checklist.affinity(None, 8),
        checklist.hyper_threads(8, None),
        checklist.swap(GB, None),
        checklist.torch_build(None),
    ],
    ids=lambda check: check.name,
)
def test_a_check_that_cannot_read_its_value_says_not_known(check):
    assert check.ok is None
    assert "not known here" in check.text


def test_no_quota_and_no_swap_are_fine():
    assert checklist.quota(None).ok and checklist.swap(0, None).ok


def test_busy_cores_are_counted_against_those_of_the_machine(monkeypatch):
    """Other processes are seen on all cores, also where this one may use two of them alone."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    machine = {"governors": None, "container": {"num_cores": 2.0}}
    (check,) = (check for check in examine.checks(machine, quiet(other_cores=30.0), None) if "other" in check.name)
    assert (check.ok, check.text) == (False, "they kept 30.0 of the machine's 64 cores busy. End them or wait")


def test_the_busiest_process_is_named_and_the_set_variable_shown():
    assert "the busiest is indexer" in checklist.other_processes(2.0, 4, [("indexer", 1.9), ("cron", 0.1)]).text
    assert "OMP_NUM_THREADS=1" in checklist.thread_variables({"OMP_NUM_THREADS": "1"}).text


# Devices


@pytest.fixture
def mps(monkeypatch):
    """A machine whose torch finds one Apple GPU."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("mps"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12_345)
    monkeypatch.setattr("laptime.machine.device.mps_has_bfloat16", lambda: True)


@pytest.fixture
def mps_that_computes(mps, monkeypatch):
    """Lets its losses be the CPU's, changed by a function."""
    computed = steps.losses

    def fake(change):
        def losses(device, precision):
            if device.used == "cpu":
                return computed(device, precision)
            return change(computed(steps.describe("auto", "cpu"), precision))

        monkeypatch.setattr(steps, "losses", losses)

    return fake


@pytest.mark.unit
def test_the_doctor_selects_no_device(monkeypatch):
    """It checks all devices, but leaves the current device of its process selected."""
    chosen: list[int] = []
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    properties = SimpleNamespace(name="a GPU", total_memory=67_890)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(steps, "losses", lambda device, precision: [1.0])
    places = ("cpu", "cuda:0", "cuda:1")
    assert set(verdicts()) == {f"{place} {precision}" for place in places for precision in steps.TOLERANCES}
    assert chosen == []


def verdicts():
    return {finding.title: finding.verdict for finding in steps.check_devices()}


def test_this_machines_cpu_trains_correctly():
    assert [steps.check("cpu", 0, precision).verdict for precision in steps.TOLERANCES] == ["works", "works"]


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda losses: losses, "works"),
        (lambda losses: [loss * 1.05 for loss in losses], "wrong results"),
        (lambda losses: [*losses[:-1], losses[-1] * 1.05], "wrong results"),
        (lambda losses: [*losses[:-1], float("nan")], "wrong results"),
    ],
    ids=["the same", "another loss", "another last step", "not a number"],
)
def test_a_device_is_judged_by_its_losses(change, verdict, mps_that_computes):
    mps_that_computes(change)
    assert verdicts() == {
        "cpu 32-true": "works", "cpu bf16-mixed": "works", "mps:0 32-true": verdict, "mps:0 bf16-mixed": verdict,
    }  # fmt: skip


def test_a_cpu_with_wrong_gradients_is_detected(monkeypatch):
    """In float32, as a faulty library would have it; float64 is computed by other code."""
    right = torch.optim.SGD.step

    def step(self):
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.dtype == torch.float32:
                    weights.grad *= 0.9
        return right(self)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    assert steps.check("cpu", 0, "32-true").verdict == "wrong results"
    assert steps.check("cpu", 0, "bf16-mixed").verdict == "wrong results"


def test_a_device_that_raises_fails_with_the_errors_first_line(mps, monkeypatch):
    def losses(device, precision):
        raise RuntimeError("no kernel image\nsecond line")

    monkeypatch.setattr(steps, "losses", losses)
    assert steps.check("mps", 0, "32-true") == Finding("mps:0", "fails", "RuntimeError: no kernel image", "32-true")


def test_a_precision_that_the_device_lacks_is_not_available(mps_that_computes, monkeypatch):
    mps_that_computes(lambda losses: losses)
    monkeypatch.setattr("laptime.machine.device.mps_has_bfloat16", lambda: False)
    finding = steps.check("mps", 0, "bf16-mixed")
    assert (finding.verdict, finding.is_broken) == ("not available", False)


# Backends


def ranks_alive():
    """All processes below this one but servers that stay: those that ranks and tested commands are copied from."""
    servers = ("forkserver", "resource_tracker", "warm_server")
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if not any(server in " ".join(child.cmdline()) for server in servers) or child.ppid() != os.getpid()
    ]


@pytest.mark.soak
def test_two_ranks_all_reduce_over_gloo_and_end():
    assert groups.check("gloo", "cpu").verdict == "works"
    assert ranks_alive() == []


def test_ranks_that_do_not_answer_in_time_are_killed():
    finding = groups.check("gloo", "cpu", timeout_s=0.01)
    assert finding.verdict == "fails"
    assert ranks_alive() == []


def test_a_backend_that_this_torch_lacks_is_not_available(monkeypatch):
    monkeypatch.setattr(groups.dist, "is_backend_available", lambda backend: False)
    finding = groups.check("nccl", "cuda")
    assert (finding.verdict, finding.is_broken) == ("not available", False)
    assert "\n" not in finding.detail


def test_a_backend_that_cannot_start_fails_with_one_line():
    """For real: MPI's backend is in no build of torch from pip, and its ranks say so when they are to use it."""
    if groups.dist.is_mpi_available():
        pytest.skip("this torch has MPI")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups.dist, "is_backend_available", lambda backend: True)  # asked here, not in the ranks
        finding = groups.check("mpi", "cpu")
    assert finding.verdict == "fails"
    assert "mpi" in finding.detail.lower() and "\n" not in finding.detail


SUMS = [3.0, 6.0, 9.0, 12.0, 15.0, 18.0, 21.0, 24.0]


@pytest.mark.parametrize(
    ("answers", "verdict", "said"),
    [
        ([SUMS, SUMS], "works", "2 ranks"),
        ([SUMS, [1.0, *SUMS[1:]]], "wrong results", "rank 1 has [1.0"),
        ([None, "RuntimeError: lost contact"], "fails", "rank 1: RuntimeError: lost contact"),
        ([SUMS, None], "fails", "rank 1 died or did not answer within 9 s"),
    ],
)
def test_a_backend_is_judged_by_the_sums_of_all_ranks(answers, verdict, said):
    finding = groups.judge("gloo", answers, 9.0)
    assert finding.verdict == verdict
    assert said in finding.detail


@pytest.mark.parametrize(("kind", "backend"), [("cuda", "nccl"), ("xpu", "xccl")])
@pytest.mark.parametrize(("num_devices", "expected"), [(1, "not available"), (2, "works")])
def test_an_accelerators_backend_needs_a_device_for_each_rank(kind, backend, num_devices, expected, monkeypatch):
    monkeypatch.setattr(groups, "available_accelerator", lambda: kind)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: num_devices)
    monkeypatch.setattr(groups, "check", lambda backend, used: Finding(backend, "works", f"on {used}"))
    assert [(finding.name, finding.verdict) for finding in groups.check_backends()] == [
        ("gloo", "works"),
        (backend, expected),
    ]


# Noise, and the whole


def quiet(**changes):
    drop = changes.pop("frequency_drop", None)
    counted = counters.Noise(**{"wall_s": 10.0, "other_cores": 0.0, "num_swapped_pages": 0} | changes)
    return Noise(Quality("A", ()), 2, (0.25,) * 40, counted, drop, ())


def test_spread_of_the_laps_by_hand():
    noise = Noise(Quality("A", ()), 2, (1.0,) * 20 + (2.0,), counters.Noise(wall_s=1.0), None, ())
    assert (noise.median_s, noise.p95_over_median, noise.num_outliers) == (1.0, 1.0, 1)


def test_the_busiest_processes_are_those_with_the_most_cpu_time_during_the_probe():
    before = {(1, 0.0): ("old", 100.0), (2, 0.0): ("idle", 7.0)}
    after = {(1, 0.0): ("old", 105.0), (2, 0.0): ("idle", 7.1), (3, 9.0): ("new\x1b[2J", 8.0)}
    assert _busiest(before, after, 10.0) == (("new?[2J (process 3)", 0.8), ("old (process 1)", 0.5))


@pytest.fixture
def quick(monkeypatch):
    """The command without backends and probe, for what comes of the devices."""
    monkeypatch.setattr(examine, "check_backends", lambda: [Finding("gloo", "works", "two ranks")])
    monkeypatch.setattr(examine, "probe", lambda seconds, cores, battery: quiet())


def test_a_broken_device_is_named_and_exits_1(quick, mps_that_computes, capsys):
    mps_that_computes(lambda losses: [loss * 1.01 for loss in losses])
    assert command.main([]) == 1
    assert "broken: mps:0 32-true" in capsys.readouterr().out.lower().replace("\n", " ")


def test_a_device_that_torch_finds_but_cannot_use_exits_1_without_a_traceback(quick, mps, capsys):
    """No fake beyond the name: this torch has no MPS, and says so when asked to train on it."""
    if torch.backends.mps.is_available():
        pytest.skip("this machine has MPS")
    assert command.main(["--json"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["broken"] == ["mps:0 32-true", "mps:0 bf16-mixed"]
    assert "Traceback" not in printed.out + printed.err


def test_values_that_json_cannot_represent_are_null(quick, monkeypatch, capsys):
    monkeypatch.setattr(examine, "probe", lambda seconds, cores, battery: quiet(other_cores=float("nan")))
    assert command.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["noise"]["other_cores"] is None


@pytest.mark.parametrize("width", [80, 120])
def test_the_whole_report_fits_the_width_of_the_terminal(width, quick):
    report = examine.examine(1.0, lambda text: None)
    written = StringIO()
    show(report, Console(file=written, width=width))
    assert max(map(len, written.getvalue().splitlines())) <= width
    assert "{" not in written.getvalue()


@pytest.mark.parametrize("seconds", ["-1", "0", "abc", "nan", "inf", ""])
def test_a_mistake_in_the_seconds_is_one_line(seconds, capsys):
    assert command.main([f"--seconds={seconds}"]) == 2
    error = capsys.readouterr().err
    assert error == f"error: --seconds {seconds}: must be a number of at least 1, e.g. 10.\n"


def test_asking_for_help_loads_no_torch():
    code = (
        "import sys\nfrom laptime.doctor.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def probing(start):
    """probing(*arguments, **environment): the command, once it has said that the probe begins."""

    def run(*arguments, **environment):
        doctor = start(*arguments, module="laptime.doctor", environment=environment, new_session=True)
        while not (line := doctor.stderr.readline()).startswith("noise: "):
            assert line, f"ended with {doctor.wait(timeout=60)}"
        return doctor

    return run


def nothing_is_left_of(doctor):
    """All processes of the command's group end."""
    until(lambda: not [pid for pid in psutil.pids() if in_group(pid, doctor.pid)], what="the doctor's processes end")
    return True


def in_group(pid, group):
    try:  # one that nobody has waited for is no process any more
        return os.getpgid(pid) == group and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (OSError, psutil.Error):
        return False


def test_the_command_reports_on_this_machine_and_leaves_nothing(probing, work_folder):
    scratch = work_folder / "tmp"
    scratch.mkdir()
    doctor = probing("--seconds", "1", "--json", TMPDIR=str(scratch))
    out, error = doctor.communicate()
    assert doctor.returncode == 0, error
    report = json.loads(out)
    assert report["broken"] == [] and report["noise"]["grade"] in ("A", "B", "C")
    assert list(work_folder.rglob("*")) == [scratch]
    assert nothing_is_left_of(doctor)


@pytest.mark.soak
@pytest.mark.alone
def test_a_busy_process_on_every_core_costs_the_grade(probing):
    doctor = probing("--seconds", "2", "--json")
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(usable_cores())]
    try:
        out, error = doctor.communicate()
    finally:
        for process in busy:
            process.kill()
            process.wait(timeout=60)
    assert doctor.returncode == 0, error
    report = json.loads(out)
    if usable_cores() >= 0.2 * (
        os.cpu_count() or 1
    ):  # otherwise they are too few of the cores that the noise refers to
        assert report["noise"]["grade"] in ("B", "C")
        assert any("other processes" in reason for reason in report["noise"]["reasons"])
        assert next(check["ok"] for check in report["checklist"] if check["name"] == "other processes") is False
    assert len(report["noise"]["busiest"]) >= 1


def test_ctrl_c_exits_130_without_a_traceback(probing):
    doctor = probing("--seconds", "600")
    os.killpg(doctor.pid, signal.SIGINT)  # as a terminal does
    _, error = doctor.communicate()
    assert doctor.returncode == 130
    assert "Traceback" not in error
    assert nothing_is_left_of(doctor)


def test_a_closed_pipe_is_no_failure(probing):
    doctor = probing("--seconds", "1")
    doctor.stdout.close()
    assert doctor.stderr.read() == ""
    doctor.stderr.close()
    assert doctor.wait() == 0
