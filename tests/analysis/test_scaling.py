"""Speedups against values computed by hand, and invariants."""

from dataclasses import asdict
from pathlib import Path

import pytest

from laptime.analysis.groups import group_runs
from laptime.analysis.load import load_runs
from laptime.analysis.mismatch import Mismatch
from laptime.analysis.overheads import Overheads
from laptime.analysis.remarks import remarks_of
from laptime.analysis.scaling import command_with_one_rank, families, parse_world_sizes, projections
from laptime.analysis.summary_tables import scaling_table
from laptime.analysis.wording import missing_baseline_words
from laptime.errors import UserError

pytestmark = pytest.mark.unit


def families_of(folder: str | Path = "."):
    return families(group_runs(load_runs([Path(folder)])[0]))


def test_speedup_efficiency_and_serial_fraction_by_hand(scaled):
    table = scaling_table(families_of(scaled))
    assert table["world_size"].to_list() == [1, 2, 4]
    assert table["speedup"].to_list() == pytest.approx([1.0, 1.8, 3.0])
    assert table["efficiency"].to_list() == pytest.approx([1.0, 0.9, 0.75])
    assert table["serial_fraction"].to_list()[1:] == pytest.approx([1 / 9, 1 / 9])
    assert (table["speedup_low"].dropna() <= table["speedup"].iloc[1:]).all()
    assert table["efficiency_low"].to_list()[2] == pytest.approx(table["speedup_low"].to_list()[2] / 4)
    assert set(table["scaling"]) == {"weak"}


def test_strong_scaling_is_named_and_measured_by_throughput(write, work_folder):
    for world_size, epoch_s in ((1, 1.0), (2, 0.6)):
        write(Path(str(world_size)), [9.0, epoch_s], world_size, changed={"training.batch_scope": "global"},
              num_samples=1000 // world_size)  # fmt: skip
    (family,) = families_of()
    assert family.kind == "strong"
    assert family.points[1].speedup == pytest.approx(1 / 0.6)
    assert family.points[1].overheads.ideal == pytest.approx(0.005)  # half of the baseline's step of 10 ms


def test_speedups_do_not_depend_on_the_unit_of_time(write, work_folder):
    for scale in (1.0, 1000.0):
        for world_size, epoch_s in ((1, 1.0), (2, 1.1), (4, 1.4)):
            for seed in (1, 2):
                write(Path(f"{scale}/{world_size}{seed}"), [9.0, scale * epoch_s * (1 + seed / 100)], world_size, seed)
    columns = ["speedup", "speedup_low", "speedup_high", "efficiency", "serial_fraction"]
    one, other = (scaling_table(families_of(str(scale)))[columns] for scale in (1.0, 1000.0))
    assert one.to_numpy() == pytest.approx(other.to_numpy(), nan_ok=True)


def test_a_repeat_equal_to_the_others_changes_no_speedup(write, work_folder):
    for world_size, epoch_s in ((1, 1.0), (2, 1.25)):
        for seed in (1, 2):
            write(Path(f"{world_size}{seed}"), [9.0, epoch_s], world_size, seed)
    before = families_of()[0].points[1]
    write(Path("another"), [9.0, 1.25], 2, seed=3)
    after = families_of()[0].points[1]
    assert (
        (before.speedup, before.speedup_interval)
        == (after.speedup, after.speedup_interval)
        == (1.6, after.speedup_interval)
    )


def test_speedup_over_a_plain_process_and_over_one_rank_ddp(write, work_folder):
    write(Path("plain"), [9.0, 1.0])
    write(Path("wrapped"), [9.0, 1.25], wrapped=True)
    write(Path("two"), [9.0, 1.0], 2)
    (family,) = families_of()
    assert family.points[-1].speedup == pytest.approx(2.0)
    assert family.points[-1].speedup_over_ddp == pytest.approx(2.5)
    assert family.points[0].speedup_over_ddp == pytest.approx(1.25)


def test_each_ddp_setting_is_a_family_with_the_same_plain_baseline(write, work_folder):
    write(Path("plain"), [9.0, 1.0])
    write(Path("none"), [9.0, 1.0], 2)
    write(Path("fp16"), [9.0, 1.25], 2, changed={"strategy.comm_hook": "fp16"})
    scaled = families_of()
    assert sorted(family.points[-1].speedup for family in scaled) == pytest.approx([1.6, 2.0])
    assert {family.name for family in scaled} == {"comm_hook=none", "comm_hook=fp16"}


@pytest.mark.parametrize(
    "other", [{"changed": {"training.batch_size": 128}}, {"sections": {"environment": {"cpu": "another"}}},
              {"sections": {"dataset": {"checksum": "other"}}}],
)  # fmt: skip
def test_another_config_machine_or_data_is_not_a_baseline(other, write, work_folder):
    write(Path("one"), [9.0, 1.0], **other)
    write(Path("two"), [9.0, 1.0], 2)
    (family,) = families_of()
    assert family.baseline is None and family.points[0].speedup is None
    assert "Run: python train.py -m strategy.world_size=1" in missing_baseline_words(family)


@pytest.mark.parametrize(
    ("other", "mismatch"),
    [
        ({"changed": {"strategy.threads_per_rank": 2}}, Mismatch("threads_per_rank", "1", "2")),
        ({"sections": {"environment": {"code_hash": "0ther"}}}, Mismatch("code", "c0de", "0ther")),
        ({"sections": {"environment": {"packages": {"torch": "2.9"}}}}, Mismatch("torch", "2.14.1", "2.9")),
    ],
)
def test_differences_from_the_baseline_are_mismatches(other, mismatch, write, work_folder):
    write(Path("one"), [9.0, 1.0], **other)
    write(Path("two"), [9.0, 1.0], 2)
    (family,) = families_of()
    assert family.points[-1].mismatches == (mismatch,)
    write(Path("better"), [9.0, 1.0], 1)
    (family,) = families_of()
    assert family.points[-1].mismatches == ()


def test_overheads_add_up_to_the_step(write, work_folder):
    write(Path("one"), [9.0, 1.0], sections={"contention": {"no_sync_step_s": 0.009}, "timing": {"steps_per_s": 100.0}})
    sections = {
        "contention": {"no_sync_step_s": 0.011, "straggler_delay": 0.1},
        "communication": {"cost_s": 0.006},
        "timing": {"steps_per_s": 50.0},
    }
    write(Path("two"), [9.0, 1.0], 2, sections=sections)
    overheads = families_of()[0].points[1].overheads
    assert asdict(overheads) == pytest.approx(
        {"ideal": 0.010, "contention": 0.002, "oversubscription": 0.0, "communication": 0.006 - 0.0011,
         "straggler_delay": 0.0011, "rest": 0.002, "step": 0.020}
    )  # fmt: skip


def test_oversubscription_is_separate_from_contention(write, work_folder):
    write(Path("one"), [9.0, 1.0], sections={"contention": {"no_sync_step_s": 0.010}})
    sections = {
        "contention": {"no_sync_step_s": 0.025, "straggler_delay": 0.0},
        "strategy": {"oversubscribed": True},
        "environment": {"num_usable_cores": 2},
    }
    write(Path("four"), [9.0, 1.0], 4, sections=sections)
    write(
        Path("alone"),
        [9.0, 1.0],
        sections={"environment": {"num_usable_cores": 2}, "contention": {"no_sync_step_s": 0.01}},
    )
    overheads = next(f for f in families_of() if f.points[-1].world_size == 4).points[-1].overheads
    # Four threads on two cores take at least twice as long.
    assert (overheads.oversubscription, overheads.contention) == pytest.approx((0.010, 0.005))


def test_overheads_that_were_not_measured_are_none(write, work_folder):
    write(Path("one"), [9.0, 1.0])
    write(Path("two"), [9.0, 1.0], 2)
    overheads = families_of()[0].points[1].overheads
    assert overheads == Overheads(ideal=0.01, step=0.01)


def test_fewer_than_three_world_sizes_are_neither_fitted_nor_projected(write, work_folder):
    write(Path("one"), [9.0, 1.0])
    write(Path("two"), [9.0, 1.0], 2)
    (family,) = families_of()
    assert family.fits == {} and projections(family, [8]) == []


def test_projections_are_marked_and_have_intervals(scaled):
    table = scaling_table(families_of(scaled), project=(4, 8))
    projected = table[table["projected"].astype(bool)]
    assert projected["world_size"].to_list() == [8]  # 4 was measured
    row = projected.iloc[0]
    assert row["speedup_low"] <= row["speedup"] <= row["speedup_high"]
    assert row["speedup"] == pytest.approx(8 / (1 + 7 / 9), rel=0.02)  # Amdahl's law with a serial ninth
    assert row["remarks"] == "projected, not measured"


def test_one_repeat_has_a_speedup_without_interval(write, work_folder):
    write(Path("one"), [9.0, 1.0])
    write(Path("two"), [9.0, 1.0], 2)
    point = families_of()[0].points[1]
    assert point.speedup == 2.0 and point.speedup_interval is None
    assert "one repeat: no interval" in remarks_of(point.group)


def test_projected_numbers_of_ranks_are_parsed_or_refused():
    assert parse_world_sizes("8, 16") == [8, 16] and parse_world_sizes("") == []
    with pytest.raises(UserError, match="--project 8,x: x is not a positive integer"):
        parse_world_sizes("8,x")


def test_the_suggested_command_drops_the_directory_of_the_earlier_runs():
    command = [
        "python",
        "train.py",
        "-m",
        "hydra.sweep.dir=taken",
        "sweep.resume=latest",
        "strategy.world_size=2",
        "seed=1",
    ]
    assert command_with_one_rank(command) == "python train.py -m seed=1 strategy.world_size=1"
