"""Comparisons of the values of one key."""

from pathlib import Path

import pytest

from laptime.analysis.analyze import analyze
from laptime.analysis.answer import answer
from laptime.analysis.compare import compare, resolve_key, swept_keys
from laptime.analysis.groups import group_runs
from laptime.analysis.load import load_runs
from laptime.analysis.mismatch import Mismatch
from laptime.analysis.remarks import remarks_of
from laptime.analysis.results import Agreement, NoTestScore, Scatter, Shift, Verdict
from laptime.analysis.summary_tables import comparison_table
from laptime.errors import UserError

pytestmark = pytest.mark.unit


AGREES = Agreement(Verdict.AGREES)


def differs(*details: NoTestScore | Scatter | Shift) -> Agreement:
    return Agreement(Verdict.DIFFERS, details)


def shifted(metric: str, by: float) -> Agreement:
    return differs(Shift(metric, pytest.approx(by)))


def groups_of(folder: str | Path = "."):
    return group_runs(load_runs([Path(folder)])[0])


def two_devices(write, num_repeats: int = 1, faster: float = 4.0) -> None:
    for seed in range(num_repeats):
        write(Path(f"cpu{seed}"), [9.0, 1.0 + seed / 100], seed=seed)
        sections = {"device": {"requested": "mps", "name": "Apple M4"}}
        write(
            Path(f"mps{seed}"),
            [9.0, (1.0 + seed / 100) / faster],
            seed=seed,
            changed={"device": "mps"},
            sections=sections,
        )


def test_devices_are_compared_with_the_cpu(write, work_folder):
    two_devices(write)
    assert swept_keys(groups_of()) == ["device"]
    (comparison,) = compare(groups_of(), "device")
    assert [row.value for row in comparison.rows] == ["cpu", "mps"]
    assert [row.speedup for row in comparison.rows] == pytest.approx([1.0, 4.0])
    assert comparison.rows[0].difference is None and comparison.rows[0].agreement is None


def test_another_baseline_inverts_the_speedup(write, work_folder):
    two_devices(write)
    (comparison,) = compare(groups_of(), "device", "mps")
    assert [(row.value, row.speedup) for row in comparison.rows] == [("mps", 1.0), ("cpu", pytest.approx(0.25))]


def test_a_missing_baseline_is_refused_with_the_values_and_the_command(write, work_folder):
    two_devices(write)
    with pytest.raises(
        UserError, match=r"--baseline device=cuda: no completed run has this value.*device=cpu, mps.*device=cuda"
    ):
        compare(groups_of(), "device", "cuda")


def test_the_value_of_the_first_run_is_the_baseline(write, work_folder):
    for number, batch_size in enumerate((128, 32, 64)):
        write(Path(f"sweep/{number}"), [9.0, 1.0], changed={"training.batch_size": batch_size})
    (comparison,) = compare(groups_of(), "training.batch_size")
    assert [row.value for row in comparison.rows] == ["128", "32", "64"]


@pytest.mark.parametrize(("num_repeats", "decidable"), [(1, False), (3, False), (4, True)])
def test_significance_needs_four_repeats(num_repeats, decidable, write, work_folder):
    two_devices(write, num_repeats)
    difference = compare(groups_of(), "device")[0].rows[1].difference
    assert (difference.decidable, difference.is_significant) == (decidable, decidable)
    assert (difference.num_repeats, difference.repeats_needed) == (num_repeats, 4)


def test_equal_throughputs_do_not_differ_significantly(write, work_folder):
    for seed in range(4):
        write(Path(f"a{seed}"), [9.0, 1.0 + seed / 10], seed=seed)
        write(Path(f"b{seed}"), [9.0, 1.05 + seed / 10], seed=seed, changed={"training.precision": "bf16-mixed"})
    (comparison,) = compare(groups_of(), "training.precision")
    difference = comparison.rows[1].difference
    assert difference.decidable and not difference.is_significant


def test_only_groups_that_differ_in_one_key_are_compared(write, work_folder):
    for batch_size in (64, 128):
        for precision in ("32-true", "bf16-mixed"):
            changed = {"training.batch_size": batch_size, "training.precision": precision}
            write(Path(f"{batch_size}{precision}"), [9.0, 1.0 if precision == "32-true" else 0.5], changed=changed)
    comparisons = compare(groups_of(), "training.precision")
    assert [comparison.common for comparison in comparisons] == ["batch_size=64", "batch_size=128"]
    assert all([row.speedup for row in comparison.rows] == [1.0, 2.0] for comparison in comparisons)


def test_a_run_that_fell_back_to_the_cpu_counts_as_cpu(write, work_folder):
    write(Path("cpu"), [9.0, 1.0])
    write(Path("mps"), [9.0, 1.0], seed=2, sections={"device": {"requested": "mps"}})
    (group,) = groups_of()
    assert "mps is not available on this machine: trained on cpu" in remarks_of(group)
    assert compare([group], "device") == []
    assert "No results for mps: not available on this machine." in answer(analyze([Path()]))


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        (([0.97], [0.95]), shifted("test_score", -0.02)),
        (([0.97], [0.969]), AGREES),  # within the error of 10,000 test images
        (([0.97, 0.94], [0.95, 0.95]), AGREES),  # within the spread of the repeats
        (([None], [None]), Agreement(Verdict.UNKNOWN)),
    ],
)
def test_different_accuracies_are_reported(accuracies, expected, write, work_folder):
    for name, values, changed in zip("ab", accuracies, ({}, {"training.precision": "bf16-mixed"}), strict=True):
        for seed, accuracy in enumerate(values):
            result = {"result": {"test_accuracy": accuracy, "train_loss": None}}
            write(Path(f"{name}{seed}"), [9.0, 1.0], seed=seed, changed=changed, sections=result)
    assert compare(groups_of(), "training.precision")[0].rows[1].agreement == expected


def test_a_loss_beyond_the_spread_of_the_repeats_is_reported(write, work_folder):
    for name, losses, changed in (("a", (0.10, 0.11), {}), ("b", (0.20, 0.21), {"training.precision": "bf16-mixed"})):
        for seed, loss in enumerate(losses):
            write(
                Path(f"{name}{seed}"), [9.0, 1.0], seed=seed, changed=changed, sections={"result": {"train_loss": loss}}
            )
    assert compare(groups_of(), "training.precision")[0].rows[1].agreement == shifted("train_loss", 0.1)


def test_other_code_threads_or_machines_are_mismatches(write, work_folder):
    write(Path("cpu"), [9.0, 1.0])
    write(Path("mps"), [9.0, 0.5], changed={"device": "mps", "strategy.threads_per_rank": 4},
          sections={"environment": {"cpu": "Apple M4", "code_hash": "0ther"}})  # fmt: skip
    assert compare(groups_of(), "device")[0].rows[1].mismatches == (
        Mismatch("threads_per_rank", "4", "1"),
        Mismatch("machine", "Apple M4, 8 cores, a CPU", "a CPU, 8 cores"),
        Mismatch("code", "0ther", "c0de"),
    )
    assert answer(analyze([work_folder])).endswith("threads_per_rank (4 and 1) and code (0ther and c0de) differ, too.")


def test_keys_are_found_by_their_last_part(write, work_folder):
    write(Path("a"), [9.0, 1.0], changed={"x.size": 1, "y.size": 1})
    groups = groups_of()
    assert resolve_key(groups, "precision") == "training.precision"
    assert resolve_key(groups, "model") == "model"
    with pytest.raises(UserError, match=r"--by size: matches x\.size and y\.size"):
        resolve_key(groups, "size")
    with pytest.raises(UserError, match="--by color: these runs have no such key"):
        resolve_key(groups, "color")
    with pytest.raises(UserError, match="--baseline color: these runs have no such key"):
        resolve_key(groups, "color", "--baseline")


def test_a_baseline_takes_the_short_name_that_tables_print(write, work_folder):
    write(Path("a"), [9.0, 1.0])
    write(Path("b"), [9.0, 0.5], world_size=2)
    (comparison,) = analyze([work_folder], baseline="ws=2").comparisons
    assert (comparison.key, [row.value for row in comparison.rows]) == ("strategy.world_size", ["2", "1"])


def test_table_has_a_row_per_value(write, work_folder):
    two_devices(write, 2)
    table = comparison_table(compare(groups_of(), "device"))
    assert table["value"].to_list() == ["cpu", "mps"]
    assert table["device_name"].to_list() == ["a CPU", "Apple M4"]
    assert table["speedup_low"].iloc[1] <= 4.0 <= table["speedup_high"].iloc[1]


@pytest.mark.parametrize(
    ("accuracies", "baseline_accuracies", "expected"),
    [
        ([0.10, 0.10, 0.97], [0.97, 0.97, 0.97], shifted("test_score", -0.87)),
        ([0.10, 0.97, 0.97], [0.97, 0.97, 0.97], differs(Scatter("test_score", pytest.approx(0.87)))),
        ([None, None, 0.97], [0.97, 0.97, 0.97], differs(NoTestScore(2, 3))),
        ([0.97, 0.96, 0.95], [0.965, 0.955, 0.95], AGREES),
    ],
)
def test_repeats_that_failed_to_learn_are_reported(accuracies, baseline_accuracies, expected, write, work_folder):
    for name, values, changed in (
        ("a", baseline_accuracies, {}),
        ("b", accuracies, {"training.precision": "bf16-mixed"}),
    ):
        for seed, accuracy in enumerate(values):
            result = {"result": {"test_accuracy": accuracy, "train_loss": None}}
            write(Path(f"{name}{seed}"), [9.0, 1.0], seed=seed, changed=changed, sections=result)
    assert compare(groups_of(), "training.precision", "32-true")[0].rows[1].agreement == expected


def test_values_that_differ_only_in_their_truncated_part_get_different_labels(write, work_folder):
    for number in (1, 2):
        write(Path(str(number)), [9.0, number], changed={"model.sizes": [64] * 30 + [number]})
    first, second = groups_of()
    assert first.label != second.label and len(first.label) < 80
    assert [row.speedup for row in compare([first, second], "model.sizes")[0].rows] in ([1.0, 0.5], [1.0, 2.0])


def write_experiments(write, *names: str) -> None:
    """Write a run of each experiment on one and on two ranks. Experiments differ in model and batch size."""
    for number, name in enumerate(names):
        changed = {"training.batch_size": 64 * (number + 1), "model._target_": f"laptime.models.Model{number}"}
        for world_size in (1, 2):
            path = Path(f"{name}-{world_size}")
            write(path, [9.0, (number + 1) / world_size], world_size=world_size, changed=changed, experiment_name=name)


def test_experiments_are_compared_by_name(write, work_folder):
    write_experiments(write, "first", "second")
    analysis = analyze([Path()])
    assert [(comparison.key, comparison.common) for comparison in analysis.comparisons] == [
        ("experiment", "ws=1"),
        ("experiment", "ws=2"),
    ]
    for comparison in analysis.comparisons:
        assert [row.value for row in comparison.rows] == ["first", "second"]
        assert [row.speedup for row in comparison.rows] == pytest.approx([1.0, 0.5])
    assert [family.name for family in analysis.families] == ["experiment=first", "experiment=second"]
    assert [group.label for group in analysis.groups] == [
        "ws=1 experiment=first", "ws=1 experiment=second", "ws=2 experiment=first", "ws=2 experiment=second",
    ]  # fmt: skip


def test_a_key_swept_within_experiments_is_compared_within_each(write, work_folder):
    for name in ("first", "second"):
        for precision in ("32-true", "bf16-mixed"):
            changed = {"training.precision": precision, "training.batch_size": len(name)}
            write(Path(f"{name}-{precision}"), [9.0, 1.0], changed=changed, experiment_name=name)
    keys = [(comparison.key, comparison.common) for comparison in analyze([Path()]).comparisons]
    assert keys == [
        ("training.precision", "experiment=first"), ("training.precision", "experiment=second"),
        ("experiment", "precision=32-true"), ("experiment", "precision=bf16-mixed"),
    ]  # fmt: skip


def test_a_single_experiment_is_not_in_the_labels(write, work_folder):
    write_experiments(write, "first")
    (family,) = analyze([Path()]).families
    assert family.name == "" and "experiment" not in swept_keys(groups_of())
