"""What makes two runs the same: paths in the run's own directory don't tell it from another, known or not yet."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from tests.support.configs import composed

from laptime.config.compose import compose, hydra_session, resolve, without_hydra
from laptime.config.identity import changed_since, hashed_config, snapshot
from laptime.config.run_values import DIRECTORY_TO_COME, known_run
from laptime.config.schema import Config
from laptime.record.hashes import config_hashes

pytestmark = pytest.mark.unit

OWN = (
    "+callbacks.mine={_target_: a.B, dirpath: '${laptime:run_dir}/own', "
    "paths: ['${laptime:run_dir}', '${laptime:run_dir}/a b']}"
)
KEYS = ("profiler.dirpath", "callbacks.mine.dirpath", "callbacks.mine.paths")


def resolved(run_dir: str | None, *overrides: str) -> Config:
    """None: the directory is not known yet."""
    with hydra_session() as hydra:
        cfg = without_hydra(compose(hydra, ["profiler=simple", *overrides]))
    with nullcontext() if run_dir is None else known_run(Path(run_dir)):
        return resolve(cfg)


def hashed(run_dir: str | None, *overrides: str) -> dict[str, Any]:
    return hashed_config(resolved(run_dir, *overrides), "cpu", 1, 1, run_dir or DIRECTORY_TO_COME)


@pytest.mark.parametrize("run_dir", ["/runs/größe/1", "/runs/a b", "here", None])
def test_a_path_in_the_runs_directory_begins_there(run_dir):
    content = hashed(run_dir, OWN)
    assert [content[key] for key in KEYS] == ["/profiler", "/own", ["", "/a b"]]
    assert config_hashes(content) == config_hashes(hashed("/another", OWN))


@pytest.mark.parametrize(
    ("run_dir", "value"),
    [("/runs/1", "/runs/12"), ("/runs/1", "a:/runs/1/x"), ("0", "0.5"), (None, "./x"), (None, ".")],
)
def test_any_other_text_stays_as_it_is(run_dir, value):
    """`0` or `.` as a directory changed numbers and the names of other folders."""
    content = hashed(run_dir, f"+callbacks.mine={{_target_: a.B, dirpath: '{value}'}}")
    assert content["callbacks.mine.dirpath"] == value
    assert content["optimizer.lr"] == hashed("/another")["optimizer.lr"]


def test_a_snapshot_tells_which_keys_changed():
    config = resolved(None, OWN)
    assert changed_since(snapshot(config), resolved(None, OWN)) == []
    assert changed_since(snapshot(config), resolved(None, OWN, "optimizer.lr=0.5")) == ["optimizer.lr"]


def test_the_first_task_is_not_hashed_and_others_are():
    assert not any(key.startswith("task") for key in hashed_config(composed(), "cpu", 1, 1))
    assert hashed_config(composed("task=language_modeling"), "cpu", 1, 1)["task.name"] == "language_modeling"


def test_an_experiment_overrides_its_task(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults: [{override /task: language_modeling}, {override /model: lstm}]\n"
        "training: {max_steps: 50}\n"
    )
    with hydra_session(str(tmp_path)) as hydra:
        mine = resolve(without_hydra(compose(hydra, ["experiment=mine"])))
        changed = resolve(without_hydra(compose(hydra, ["experiment=mine", "training.max_steps=60", "model=gpt"])))
    assert mine.model["_target_"] == "laptime.models.lstm.LSTM" and mine.training.max_steps == 50
    assert mine.dataset["_target_"] == "laptime.data.text.Text"
    assert changed.model["_target_"] == "laptime.models.gpt.GPT" and changed.training.max_steps == 60
