"""The environment section of reports."""

from pathlib import Path

import pytest

from laptime.analysis.analyze import analyze
from laptime.analysis.report import as_html, as_markdown, as_text, environment

pytestmark = pytest.mark.unit

SERVER = {
    "hostname_hash": "5e57e7", "machine": "x86_64", "num_sockets": 2, "num_physical_cores": 16, "num_logical_cores": 32,
    "num_performance_cores": 4, "num_efficiency_cores": 12, "governors": ["performance"],
    "caches": [{"level": 1, "type": "data", "size_bytes": 49152, "num": 16},
               {"level": 3, "type": "unified", "size_bytes": 3 * 2**23, "num": 2}],
    "frequency_min_hz": 800_000_000, "frequency_max_hz": 3_900_000_000, "memory_bytes": 2**36,
    "container": {"num_cores": 1.5, "memory_bytes": 2**31}, "os_version": "Debian 12", "platform": "Linux-6",
    "driver": "535.1", "variables": {"OMP_NUM_THREADS": "4"},
    "torch": {"version": "2.9", "blas": "mkl", "cuda": None, "num_threads": 1, "num_interop_threads": 2},
}  # fmt: skip


def test_all_known_facts_are_listed(write):
    write(Path("a"), [9.0, 1.0], sections={"environment": SERVER})
    (machine, rows), (_, rest) = environment(analyze([Path("a")]))
    assert machine == "Machine"
    assert rows == [
        ("Processor", "a CPU (x86_64)"),
        ("Cores", "2 sockets, 16 physical (4 performance, 12 efficiency), 32 logical, 8 usable"),
        ("Caches", "16 x L1d 48 KiB, 2 x L3 24 MiB"),
        ("Clock", "0.80 GHz-3.90 GHz, governor performance"),
        ("Memory", "64 GiB"),
        ("Container", "1.5 cores, 2 GiB"),
        ("System", "Debian 12, Linux-6"),
    ]
    values = dict(rest)
    assert values["Device"] == "cpu, a CPU, driver 535.1"
    assert values["torch"] == "2.9, BLAS mkl, 1 thread, 2 interop threads"
    assert values["Variables"] == "OMP_NUM_THREADS=4"


def test_each_machine_has_a_section_and_differing_software_is_listed_together(write):
    for seed, sections in enumerate([{}, {}, SERVER | {"python": "3.14.0"}]):
        write(Path(f"sweep/{seed}"), [9.0, 1.0], seed=seed, sections={"environment": sections})
    analysis = analyze([Path("sweep")])
    titles = [title for title, _ in environment(analysis)]
    assert titles == ["Machine 1: h, 2 runs", "Machine 2: 5e57e7, 1 run", "Device, software, code and data"]
    assert "; Python 3.14.0" in dict(environment(analysis)[-1][1])["Versions"]
    for report in (as_text(analysis), as_markdown(analysis, []), as_html(analysis, {})):
        assert all(title in report for title in titles)


def test_two_devices_of_a_machine_are_one_machine(write):
    for seed, device in enumerate(["cpu", "mps"]):
        write(Path(f"sweep/{seed}"), [9.0, 1.0], changed={"device": device}, sections={"environment": SERVER})
    (title, _), (_, rest) = environment(analyze([Path("sweep")]))
    assert title == "Machine"
    assert dict(rest)["Device"] == "cpu, a CPU, driver 535.1; mps, a CPU, driver 535.1"


REQUIRED = {"packages", "cpu", "num_usable_cores", "hostname_hash", "code_hash"}


@pytest.mark.parametrize("value", [None, float("nan")])
def test_facts_that_an_older_record_lacks_are_omitted(value, write):
    write(Path("a"), [9.0, 1.0], sections={"environment": dict.fromkeys(SERVER.keys() - REQUIRED, value)})
    assert "a CPU" in as_markdown(analyze([Path("a")]), [])


@pytest.mark.parametrize("value", ["nonsense", [3], {"size_bytes": []}, [{}], [None]])
def test_a_run_with_a_damaged_environment_is_skipped(value, write):
    write(Path("a"), [9.0, 1.0])
    write(Path("b"), [9.0, 1.0], seed=2, sections={"environment": {"memory_bytes": value}})
    analysis = analyze([Path()])
    assert "a CPU" in as_markdown(analysis, [])
    (skipped,) = analysis.skipped
    assert skipped.path == Path("b") and "environment.memory_bytes" in skipped.reason
