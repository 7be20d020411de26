"""Tables of phases, MFU, memory, energy and framework overhead."""

from pathlib import Path

import pytest

from laptime.analysis.analyze import analyze
from laptime.analysis.plots import plots
from laptime.analysis.table import Table
from laptime.analysis.tables import tables

pytestmark = pytest.mark.unit

STEP = {"forward_s": 0.004, "backward_s": 0.003, "optimizer_s": 0.002, "rest_s": 0.001, "step_s": 0.010,
        "step_p50_s": 0.010, "step_p95_s": 0.012, "step_p99_s": 0.015}  # fmt: skip


def table(title: str) -> Table | None:
    return next((shown for shown in tables(analyze([Path()])) if shown.title == title), None)


def cells(values: Table, row: int = 0) -> dict[str, str]:
    texts = [cell.text for cell in values.rows[row].cells]
    return dict(zip([column.head for column in values.columns], texts, strict=True))


def test_phases_are_in_percent_of_the_step(write, work_folder):
    write(Path("1"), [1.0, 1.0], sections={"breakdown": STEP, "peak": {"mfu": 0.25, "verdict": "slow"}})
    values = cells(table("Phases of a step"))
    assert (values["ms per step"], values["p99"]) == ("10.00", "15.00")
    assert [values[phase] for phase in ("forward", "backward", "optimizer", "rest")] == ["40%", "30%", "20%", "10%"]
    assert "comm" not in values and "data" not in values  # no group has any
    assert (values["MFU"], values["limit"]) == ("25%", "slow")


def test_a_phase_that_only_one_group_has_is_a_column(write, work_folder):
    write(Path("1"), [1.0, 1.0], sections={"breakdown": STEP})
    with_waiting = STEP | {"communication_s": 0.010, "step_s": 0.020}
    write(Path("2"), [1.0, 1.0], 2, sections={"breakdown": with_waiting})
    shown = table("Phases of a step")
    assert [cells(shown, row)["comm"] for row in (0, 1)] == ["", "50%"]
    assert "steps" in plots(analyze([Path()]))


def test_figures_are_medians_of_the_repeats(write, work_folder):
    for seed, factor in ((1, 1.0), (2, 2.0), (3, 9.0)):
        phases = {name: factor * seconds for name, seconds in STEP.items()}
        write(Path(str(seed)), [1.0, 1.0], seed=seed, sections={"breakdown": phases})
    assert cells(table("Phases of a step"))["ms per step"] == "20.00"


def test_energy_memory_and_overhead(write, work_folder):
    resources = {
        "peak_device_memory_bytes": 2 * 10**9,
        "energy_joules": 1234.5,
        "energy_joules_per_1000_samples": 12.34,
    }
    bare_loop = {"overhead": 0.034, "overhead_s_per_step": 5e-5}
    write(Path("1"), [1.0, 1.0], sections={"resources": resources, "bare_loop": bare_loop})
    values = cells(table("Resources"))
    assert values["J per epoch"] == "1,234" and values["J per 1,000 samples"] == "12.3"
    assert (values["peak memory"], values["peak device memory"]) == ("1.00 GB", "2.00 GB")
    assert values["vs bare loop"] == "+3.4%, +0.050 ms per step"


def test_the_reason_for_missing_energy_is_a_note(write, work_folder):
    write(Path("1"), [1.0, 1.0], sections={"resources": {"energy_missing": "no counter here"}})
    resources = table("Resources")
    assert "J per epoch" not in cells(resources)
    assert any("Energy was not measured: no counter here." in note for note in resources.notes)


def test_records_without_newer_measurements_are_analyzed(write, work_folder):
    write(Path("1"), [1.0, 1.0], breakdown=None, peak=None, bare_loop=None)
    analysis = analyze([Path()])
    assert len(analysis.runs) == 1
    assert table("Phases of a step") is None


@pytest.mark.parametrize(
    "sections",
    [
        {"breakdown": {"forward_s": "long"}},
        {"peak": {"verdict": 7}},
        {"resources": {"energy_joules": [1, 2]}},
        {"bare_loop": {"overhead": True}},
    ],
    ids=str,
)
def test_a_figure_of_the_wrong_type_is_damage(sections, write, work_folder):
    write(Path("1"), [1.0, 1.0], sections=sections)
    (skipped,) = analyze([Path()]).skipped
    assert "damaged" in skipped.reason


def test_dollars_in_labels_are_not_math_mode(write, work_folder):
    for number, value in enumerate(("$\\frac{$", "$$", "x$y$", "a\\$b$", "_^{")):
        for world_size in (1, 2):
            write(Path(f"sweep/{number}{world_size}"), [9.0, 1.0], world_size, changed={"x.name": value})
    assert plots(analyze([Path("sweep")]))["speedup"].startswith(b"\x89PNG")
