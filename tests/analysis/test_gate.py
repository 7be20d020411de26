"""The performance gate: `laptime analyze --gate`."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from laptime.analysis.__main__ import main
from laptime.record.files import RUN_FILE

pytestmark = [pytest.mark.unit, pytest.mark.usefixtures("unrendered")]


def gate(*arguments: str) -> int:
    return main(["now", "--gate", "then/summary/summary.json", *arguments])


def write_changed_baseline(change: Callable[[dict[str, Any]], Any], write: Callable[..., Path]) -> None:
    """Write a baseline summary, change its only group, and write the same run again as the current one."""
    for folder in ("then", "now"):
        write(Path(folder, "0"), [9.0, 1.0])
    assert main(["then"]) == 0
    summary = Path("then/summary/summary.json")
    content = json.loads(summary.read_text())
    change(content["groups"][0])
    summary.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("slower", "noise", "code"),
    [
        (1.0, 0.01, 0),
        (1.04, 0.001, 0),  # within the tolerance
        (1.5, 0.01, 1),
        (1.1, 0.5, 0),  # within the interval
        (0.5, 0.01, 0),  # faster
    ],
)
def test_gate_fails_where_throughput_fell_beyond_interval_and_tolerance(slower, noise, code, write, work_folder):
    for seed in range(5):
        epoch_s = 1 + noise * seed
        write(Path(f"then/{seed}"), [9.0, epoch_s], seed=seed)
        write(Path(f"now/{seed}"), [9.0, slower * epoch_s], seed=seed, sections={"environment": {"code_hash": "newer"}})
    assert main(["then"]) == 0
    assert gate("--tolerance", "0.05") == code


OLD_SUMMARY = """
{"schema_version": 1, "made_at": "2026-11-20T10:00:00+00:00", "answer": "...", "groups": [
  {"label": "batch_size=64", "group_hash": "HASH", "seeds": [1], "samples_per_s": [2000.0], "remarks": ["on 2 hosts"],
   "conditions": {"machine": "a CPU, 8 cores", "checksum": "abc", "torch": "2.14.1", "code": "c0de"}}
], "tables": {"scaling": [{"straggling_s_per_step": 0.1, "step_s_per_step": 0.2}]}}
"""


def test_gate_reads_the_summary_of_an_older_version(write, work_folder, capsys):
    run = write(Path("now/0"), [9.0, 1.0])
    group_hash = json.loads((run / RUN_FILE).read_text())["group_hash"]
    Path("then/summary").mkdir(parents=True)
    summary = OLD_SUMMARY.replace('"HASH"', json.dumps(group_hash))
    Path("then/summary/summary.json").write_text(summary)
    assert gate() == 1
    assert "0.500 x" in capsys.readouterr().out
    Path("then/summary/summary.json").write_text(summary.replace("2000.0", "1000.0"))
    assert gate() == 0


@pytest.mark.parametrize("speed", [True, math.inf, math.nan, 0, -1, "1"])
def test_an_invalid_speed_is_refused(speed, write, work_folder):
    write_changed_baseline(lambda group: group.update(samples_per_s=[speed]), write)
    assert gate() == 2


def test_gate_says_that_the_baseline_does_not_name_its_machine(write, work_folder, capsys):
    write_changed_baseline(lambda group: group.pop("conditions"), write)
    assert gate() == 0
    assert "machine" in capsys.readouterr().out.partition("gate:")[2]


def test_gate_fails_where_a_group_is_missing_or_on_another_machine(write, work_folder, capsys):
    for name, changed in (("a", {}), ("b", {"training.batch_size": 32})):
        write(Path(f"then/{name}"), [9.0, 1.0], changed=changed)
    write(Path("now/a"), [9.0, 1.0])
    assert main(["then"]) == 0
    assert gate() == 1
    assert "gate: missing batch_size=32: not compared; no completed run of this group" in capsys.readouterr().out
    write(Path("now/b"), [9.0, 1.0], changed={"training.batch_size": 32}, sections={"environment": {"cpu": "another"}})
    assert gate() == 1
    assert "not compared; machine another, 8 cores, baseline a CPU, 8 cores" in capsys.readouterr().out


def test_gate_needs_a_group_in_common(write, work_folder, capsys):
    write(Path("then/0"), [9.0, 1.0])
    write(Path("now/0"), [9.0, 1.0], changed={"training.batch_size": 32})
    assert main(["then"]) == 0
    assert gate() == 2
    assert "no group in common" in capsys.readouterr().err
    Path("then/summary/summary.json").write_text('{"groups": [{"group_hash": 1, "samples_per_s": []}]}')
    assert gate() == 2


def test_a_summary_that_would_be_overwritten_is_not_a_gate(scaled, capsys):
    assert main(["sweep"]) == 0
    assert main(["sweep", "--gate", "sweep/summary/summary.json"]) == 2
    assert "would be overwritten" in capsys.readouterr().err
