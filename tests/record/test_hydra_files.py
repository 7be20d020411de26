"""What Hydra leaves in the directories of runs and sweeps is read in one place."""

import json
from pathlib import Path

import pytest
import yaml

from laptime.record.hydra_files import HydraFileError, read_best_trial, read_overrides, read_sweep_file
from laptime.record.plan import read_plan, write_plan

pytestmark = pytest.mark.unit


@pytest.fixture
def content() -> dict:
    return {
        "hydra": {
            "overrides": {"task": ["seed=1,2", "+training.accumulate_grad_batches=2"], "hydra": ["hydra.sweep.dir=s"]},
            "sweeper": {"_target_": "a.Sweeper", "n_trials": 3},
            "sweep": {"subdir": "${hydra.job.num}"},
            "job": {"config_name": "mine"},
            "runtime": {"config_sources": [
                {"path": "hydra.conf", "provider": "hydra"}, {"path": "/mine", "provider": "command-line"},
            ]},
        },
        "optimized_metric": "val_accuracy",
    }  # fmt: skip


def written(content: object, name: str = "multirun.yaml") -> Path:
    Path(name).write_text(yaml.safe_dump(content))
    return Path()


def test_a_sweep_file_says_how_the_sweep_was_started(content, work_folder):
    file = read_sweep_file(written(content))
    assert file.overrides == ("seed=1,2", "+training.num_microbatches=2", "hydra.sweep.dir=s")
    assert (file.subdir, file.output_subdir, file.config_name) == ("${hydra.job.num}", ".hydra", "mine")
    assert (file.config_dir, file.optimized_metric) == ("/mine", "val_accuracy")
    assert file.is_complete and file.is_search
    assert read_sweep_file(written(content, "multirun-0.yaml"), "multirun-0.yaml") == file


def test_output_subdir_null_is_none(content, work_folder):
    content["hydra"]["output_subdir"] = None
    assert read_sweep_file(written(content)).output_subdir is None


@pytest.mark.parametrize(
    "part", [["overrides", "task"], ["overrides"], ["sweeper", "_target_"], ["sweep"], ["job"], ["runtime"]]
)
def test_a_file_without_a_section_is_not_complete(part, content, work_folder):
    *parents, key = part
    node = content["hydra"]
    for parent in parents:
        node = node[parent]
    del node[key]
    file = read_sweep_file(written(content))
    assert not file.is_complete and file.is_search


@pytest.mark.parametrize(
    ("text", "why"),
    [(b"", "TypeError"), (b"a: 1", "KeyError"), (b"hydra: 5", "TypeError"), (b"hydra: [", "ParserError"),
     (b"\xff\xfe", "UnicodeDecodeError"), (b"hydra: {runtime: {config_sources: [5]}}", "TypeError")],
)  # fmt: skip
def test_files_that_hydra_did_not_write_are_refused(text, why, work_folder):
    Path("multirun.yaml").write_bytes(text)
    with pytest.raises(HydraFileError, match=f"^{why}$"):
        read_sweep_file(Path())


def test_overrides_of_a_run_have_current_key_names(work_folder):
    Path(".hydra").mkdir()
    written(["training.accumulate_grad_batches=2", "seed=1"], ".hydra/overrides.yaml")
    assert read_overrides(Path()) == ["training.num_microbatches=2", "seed=1"]
    written([], ".hydra/overrides.yaml")
    assert read_overrides(Path()) == []
    for text in (b"5", b"\xff\xfe- x", b"- [" * 3):
        Path(".hydra/overrides.yaml").write_bytes(text)
        with pytest.raises(HydraFileError):
            read_overrides(Path())
    with pytest.raises(HydraFileError, match="FileNotFoundError"):
        read_overrides(Path(), "kept")


def test_the_best_trial_of_a_search(work_folder):
    written({"best_params": {"optimizer.lr": 0.1}, "best_value": 0.5}, "optimization_results.yaml")
    best = read_best_trial(Path())
    assert best.params == {"optimizer.lr": 0.1} and best.value == 0.5
    written({"solutions": []}, "optimization_results.yaml")
    with pytest.raises(HydraFileError):
        read_best_trial(Path())


def test_a_plan_keeps_the_start_of_the_sweep(work_folder):
    assert read_plan(Path()) == {}
    write_plan(Path(), {0: "seed=1"}, starts=True)
    started = json.loads(Path("plan.json").read_text())["started_at"]
    write_plan(Path(), {0: "seed=1", 1: "seed=2"})
    assert json.loads(Path("plan.json").read_text())["started_at"] == started is not None
    assert read_plan(Path()) == {0: "seed=1", 1: "seed=2"}
    Path("plan.json").write_text('{"runs": {"-1": "a", "2000000000": "b", "3": "\\u001b[1m"}}')
    assert read_plan(Path()) == {3: "\\x1b[1m"}
    Path("plan.json").write_text("[]")
    assert read_plan(Path()) == {}
