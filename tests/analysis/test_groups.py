"""Groups of repeats: which runs belong together, their labels, figures and remarks."""

from pathlib import Path

import pytest

from laptime.analysis.group import Reached, Target, reached
from laptime.analysis.groups import group_runs
from laptime.analysis.labels import differing_keys
from laptime.analysis.load import load_runs
from laptime.analysis.remarks import remarks_of
from laptime.analysis.summary_tables import groups_table
from laptime.record.score import ACCURACY

pytestmark = pytest.mark.unit


def groups_of(*folders: str):
    return group_runs(load_runs([Path(folder) for folder in folders])[0])


def test_runs_that_differ_only_in_the_seed_are_repeats(scaled):
    groups = groups_of("sweep")
    assert [group.label for group in groups] == ["ws=1", "ws=2", "ws=4"]
    assert [[run.seed for run in group.runs] for group in groups] == [[1, 2, 3]] * 3


def test_figures_by_hand(write, work_folder):
    write(Path("a"), [9.0, 1.0, 2.0, 3.0], seed=1, sections={"result": {"test_accuracy": 0.90}})
    write(Path("b"), [9.0, 4.0, 4.0, 4.0], seed=2, sections={"result": {"test_accuracy": 0.94}})
    (row,) = groups_table(groups_of(".")).to_dict("records")
    assert (row["num_repeats"], row["seeds"]) == (2, "1 2")
    assert (row["epoch_time_s"], row["epoch_time_s_min"], row["epoch_time_s_max"]) == (3.0, 1.0, 4.0)
    assert row["epoch_time_s_between"] == pytest.approx(2**0.5)
    assert row["epoch_time_s_within"] == pytest.approx(0.5)  # median of the standard deviations 1 and 0
    assert row["samples_per_s"] == pytest.approx(1000 / 3.0)  # derived from the median epoch time
    assert row["test_accuracy"] == pytest.approx(0.92)
    assert row["test_accuracy_between"] == pytest.approx(0.02 * 2**0.5)


@pytest.mark.parametrize(
    "other",
    [
        {"changed": {"training.batch_size": 128}},
        {"sections": {"environment": {"code_hash": "other"}}},
        {"sections": {"environment": {"cpu": "another CPU"}}},
        {"sections": {"environment": {"packages": {"torch": "2.9"}}}},
        {"sections": {"environment": {"python": "3.14.0"}}},
        {"sections": {"environment": {"torch": {"cpu_capability": "DEFAULT"}}}},
        {"sections": {"environment": {"settings": {"OMP_WAIT_POLICY": "PASSIVE"}}}},
        {"sections": {"environment": {"torch": {"num_threads": 7}}}},
        {"sections": {"dataset": {"checksum": "other"}}},
        {"sections": {"strategy": {"num_nodes": 2}}},
        {"changed": {"device": "cuda"}, "sections": {"device": {"name": "A100"}}},
    ],
)
def test_another_config_code_machine_or_data_make_another_group(other, write, work_folder):
    write(Path("a"), [9.0, 1.0])
    write(Path("b"), [9.0, 1.0], seed=2, **other)
    groups = groups_of(".")
    assert len(groups) == 2 and len({group.label for group in groups}) == 2


def test_order_of_the_runs_does_not_matter(scaled):
    runs = load_runs([scaled])[0]
    forward, backward = groups_table(group_runs(runs)), groups_table(group_runs(runs[::-1]))
    assert forward.equals(backward)


def test_a_model_replaces_all_of_its_keys(write, work_folder):
    write(Path("a"), [9.0, 1.0], changed={"model.hidden": 512})
    write(Path("b"), [9.0, 1.0], changed={"model._target_": "laptime.models.cnn.CNN", "model.channels": 32})
    groups = groups_of(".")
    assert differing_keys(groups) == ["model"]
    assert [group.label for group in groups] == ["model=cnn", "model=mlp"]


def test_keys_with_the_same_last_part_are_named_in_full(write, work_folder):
    write(Path("a"), [9.0, 1.0], changed={"x.size": 1, "y.size": 1})
    write(Path("b"), [9.0, 1.0], changed={"x.size": 2, "y.size": 2})
    assert [group.label for group in groups_of(".")] == ["x.size=1 y.size=1", "x.size=2 y.size=2"]


def test_remarks_list_problems_with_the_figures(write, work_folder):
    sections = {
        "device": {"requested": "mps"},
        "strategy": {"oversubscribed": True},
        "result": {"stop_reason": "time_limit"},
    }
    write(Path("a"), [9.0, 1.0], sections=sections)
    write(Path("b"), [9.0, 2.0], seed=2, sections={"environment": {"hostname_hash": "another"}, **sections})
    (group,) = groups_of(".")
    remarks = "; ".join(remarks_of(group))
    for words in (
        "mps is not available on this machine: trained on cpu", "oversubscribed", "on 2 hosts",
        "standard deviation between repeats: 53%", "stopped by time_limit",
    ):  # fmt: skip
        assert words in remarks


def test_time_to_an_accuracy_counts_the_repeats_that_reached_it(write, work_folder):
    write(Path("a"), [9.0, 1.0, 2.0])  # validation accuracies 0.90, 0.92, 0.94
    write(Path("b"), [9.0, 3.0], seed=2)
    (group,) = groups_of(".")
    assert reached(group, Target(ACCURACY, 0.94)) == Reached(ACCURACY, 0.94, 1, 12.0)
    assert reached(group, Target(ACCURACY, 0.92)) == Reached(ACCURACY, 0.92, 2, (10.0 + 12.0) / 2)
    assert reached(group, Target(ACCURACY, 0.99)) == Reached(ACCURACY, 0.99, 0, None)
    assert reached(group, None) is None


def test_a_trend_over_the_epochs_is_a_remark(write, work_folder):
    for seed in range(3):
        write(Path(f"falling/{seed}"), [9.0, 1.3, 1.2, 1.1, 1.0], seed=seed)
        write(Path(f"rising/{seed}"), [9.0, 1.0, 1.1, 1.2, 1.3], seed=seed)
        write(Path(f"even/{seed}"), [9.0, 1.0, 1.001, 1.002, 1.003], seed=seed)
    remarks = {folder: "; ".join(remarks_of(groups_of(folder)[0])) for folder in ("falling", "rising", "even")}
    assert "epochs got faster by 26% from the first to the last: raise measure.warmup_epochs" in remarks["falling"]
    assert "epochs get slower by 26%" in remarks["rising"]
    assert "epochs" not in remarks["even"]


def test_another_accelerator_is_another_machine(write, work_folder):
    for number, name in enumerate(("A100", "Tesla T4")):
        write(
            Path(f"{number}"), [9.0, 1.0], seed=number, changed={"device": "cuda"}, sections={"device": {"name": name}}
        )
    assert len(groups_of(".")) == 2


def test_two_runs_of_one_seed_have_two_timings_and_one_result(write, work_folder):
    for name in "ab":
        write(Path(name), [9.0, 1.0])
    (group,) = groups_of(".")
    assert (len(group.runs), group.num_seeds) == (2, 1)
    assert group.values("result", "test_accuracy") == [0.97]


def test_quality_is_the_worst_of_the_repeats_with_its_reasons(write, work_folder):
    write(Path("a"), [9.0, 1.0])
    write(Path("b"), [9.0, 1.0], seed=2, sections={"quality": {"grade": "C", "reasons": ["other processes", "swap"]}})
    (group,) = groups_of(".")
    assert group.quality == "C"
    assert "quality C in 1 of 2 repeats: other processes; swap" in remarks_of(group)
    assert groups_table([group])["quality"].to_list() == ["C"]


def test_the_standard_deviation_between_repeats_is_of_the_shown_rates(write, work_folder):
    # With two epochs, the median of the rates differs from the rate of the median time.
    write(Path("a"), [9.0, 1.0, 9.0], seed=1)
    write(Path("b"), [9.0, 5.0, 5.0], seed=2)
    (group,) = group_runs(load_runs([Path()])[0])
    assert group.throughputs == pytest.approx([200.0, 200.0])
    assert group.samples_per_s.median == pytest.approx(200.0) and group.samples_per_s.std_repeats == pytest.approx(0.0)
    assert not any("between repeats" in remark for remark in remarks_of(group))


def test_labels_round_long_numbers_where_they_stay_distinct(write, work_folder):
    for name, lr in (("a", 0.004108433563645798), ("b", 0.0123), ("c", 0.1)):
        write(Path(name), [9.0, 1.0], changed={"optimizer.lr": lr})
    assert [group.label for group in group_runs(load_runs([Path()])[0])] == ["lr=0.004108", "lr=0.0123", "lr=0.1"]
    write(Path("d"), [9.0, 1.0], changed={"optimizer.lr": 0.004108433563645799})
    labels = [group.label for group in group_runs(load_runs([Path()])[0])]
    assert "lr=0.004108433563645798" in labels and len(set(labels)) == 4
