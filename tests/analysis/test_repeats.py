"""Groups of a sweep that need more repeats."""

from pathlib import Path

import pytest

from laptime.analysis.groups import group_runs
from laptime.analysis.load import load_runs
from laptime.analysis.repeats import missing_repeats

pytestmark = pytest.mark.unit


@pytest.fixture
def overrides_by_run() -> dict[int, list[str]]:
    """The overrides of the sweep's runs, by number."""
    return {}


@pytest.fixture
def write_job(write, overrides_by_run):
    def write_one(number: int, seed: int, epoch_s: float, lr: float = 0.001, **changes) -> None:
        write(Path(f"sweep/{number}"), [9.0, epoch_s], seed=seed, changed={"optimizer.lr": lr}, **changes)
        overrides_by_run[number] = [f"optimizer.lr={lr}", f"seed={seed}"]

    return write_one


def test_only_imprecise_groups_are_repeated(write_job, overrides_by_run, work_folder):
    for seed in range(1, 6):
        write_job(seed, seed, 1.0)
        write_job(10 + seed, seed, 1.0 + seed / 10, lr=0.002)
    assert missing_repeats(Path("sweep"), overrides_by_run, 0.02, most=20) == [["seed=6", "optimizer.lr=0.002"]]
    assert missing_repeats(Path("sweep"), overrides_by_run, 0.02, most=5) == []
    groups = group_runs(load_runs([Path("sweep")])[0])
    assert [group.is_precise(0.02) for group in groups] == [True, False]


def test_few_repeats_are_not_enough_even_if_they_are_equal(write_job, overrides_by_run, work_folder):
    for seed in (1, 2, 3, 4):
        write_job(seed, seed, 1.0)
    assert missing_repeats(Path("sweep"), overrides_by_run, 0.02, most=20) == [["seed=5", "optimizer.lr=0.001"]]


def test_the_next_seed_comes_after_the_highest(write_job, overrides_by_run, work_folder):
    write_job(1, 5, 1.0)
    write_job(2, 8, 1.0)
    assert missing_repeats(Path("sweep"), overrides_by_run, 0.02, most=20) == [["seed=9", "optimizer.lr=0.001"]]


def test_failed_repeats_count_towards_the_limit(write_job, overrides_by_run, work_folder):
    write_job(1, 1, 1.0)
    for seed in (2, 3):
        write_job(seed, seed, 1.0, status="failed")
    assert missing_repeats(Path("sweep"), overrides_by_run, 0.02, most=4) == [["seed=4", "optimizer.lr=0.001"]]
    assert missing_repeats(Path("sweep"), overrides_by_run, 0.02, most=3) == []


def test_repeats_with_other_overrides_belong_to_the_same_group(write_job, overrides_by_run, work_folder):
    write_job(1, 1, 1.0)
    write_job(2, 2, 1.0)
    overrides_by_run[2].append("measure.target_interval=0.02")  # added when the sweep was resumed
    assert missing_repeats(Path("sweep"), overrides_by_run, 0.02, most=20) == [["seed=3", "optimizer.lr=0.001"]]


def test_a_group_without_known_overrides_is_not_repeated(write_job, overrides_by_run, work_folder):
    write_job(1, 1, 1.0)
    write_job(2, 1, 1.0, lr=0.002)
    del overrides_by_run[2]
    assert missing_repeats(Path("sweep"), overrides_by_run, 0.02, most=20) == [["seed=2", "optimizer.lr=0.001"]]


def test_a_seed_set_with_plus_plus_is_a_seed(write_job, overrides_by_run, work_folder):
    for seed in (1, 2):
        write_job(seed, seed, 1.0)
        overrides_by_run[seed] = ["optimizer.lr=0.001", f"++seed={seed}"]
    assert missing_repeats(Path("sweep"), overrides_by_run, 0.02, most=20) == [["seed=3", "optimizer.lr=0.001"]]
