"""A sweep that Laptime 0.1.0 wrote (old_sweep.json) is read, resumed, continued and evaluated as if it were new.

Its run.json has `run_dir`, `run_label`, `experiment_name` and `runs_at_once` in `config`, and its conf files used
`${run_dir}`. Its schedule has `warmup_share`, which is `warmup_fraction` now. Run 1 of the sweep was lost.
"""

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from tests.support.settings import NO_REPORT

import laptime
from laptime.analysis.load import load_runs
from laptime.config.compose import compose, hydra_session, resolve, without_hydra
from laptime.config.identity import hashed_config
from laptime.evaluation.main import main as evaluate
from laptime.record.files import read_record
from laptime.record.hashes import config_hashes
from laptime.record.hydra_files import read_overrides
from laptime.record.renamed import by_new_names, by_old_names

STATE = ("run_dir", "run_label", "experiment_name", "runs_at_once")


@pytest.fixture
def old_record(work_folder: Path) -> dict[str, Any]:
    """The content of run.json as it was written; the sweep is in the folder sweep."""
    content = json.loads(Path(__file__).with_name("old_sweep.json").read_text())
    for name, values in content["files"].items():
        path = Path("sweep") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))  # JSON is YAML
    Path("sweep/0/epochs.csv").write_text(content["epochs.csv"])
    Path("sweep/0/checkpoints").mkdir()
    Path("sweep/0/checkpoints/last.ckpt").write_bytes(zlib.decompress(base64.b85decode(content["last.ckpt"])))
    record: dict[str, Any] = content["files"]["0/run.json"]
    return record


@pytest.mark.unit
def test_what_the_run_set_moves_from_the_configuration_to_the_record(old_record):
    record = read_record(Path("sweep/0"))
    assert {key: record[key] for key in STATE} == {key: old_record["config"][key] for key in STATE}
    assert not set(STATE) & set(record["config"])
    assert (
        record["config"]["scheduler"]["warmup_fraction"] == 0.2 == record["hashed_config"]["scheduler.warmup_fraction"]
    )
    runs, skipped = load_runs([Path()])
    assert len(runs) == 1 and not skipped and runs[0].record.run_label == "seed=1"


@pytest.mark.unit
def test_the_same_overrides_have_the_same_hashes(old_record):
    overrides = read_overrides(Path("sweep/0"))
    with hydra_session() as hydra:
        config = resolve(without_hydra(compose(hydra, overrides)))
    hashes = config_hashes(hashed_config(config, "cpu", 1, 1))
    assert hashes == (old_record["config_hash"], old_record["group_hash"])


@pytest.mark.unit
def test_a_former_interpolation_is_read_by_its_new_name(work_folder):
    Path(".hydra").mkdir()
    Path(".hydra/overrides.yaml").write_text("- x=${run_dir}/a ${run_label} ${run_dir2}\n")
    assert read_overrides(Path()) == ["x=${laptime:run_dir}/a ${laptime:run_label} ${run_dir2}"]


@pytest.mark.unit
def test_a_users_class_keeps_an_argument_of_the_old_name():
    values = {"scheduler._target_": "my.Schedule", "scheduler.warmup_share": 0.1, "scheduler.warmup_fraction": 0.2}
    assert by_new_names(values) == by_old_names(values) == values


@pytest.mark.unit
@pytest.mark.parametrize("override", ["scheduler.warmup_share=0.1", "+scheduler.warmup_share=0.1"])
def test_the_old_key_of_a_schedule_is_refused_with_the_new_one(override, call):
    done = call("scheduler=one_cycle", override)
    assert done.returncode == 2 and done.stderr.startswith("error: scheduler.warmup_share=0.1: ")
    assert "scheduler.warmup_fraction=0.1" in done.stderr


def test_it_is_resumed(old_record, train):
    done = train("sweep.resume=sweep", NO_REPORT)
    assert done.returncode == 0, done.stderr
    old, new = (read_record(Path("sweep") / number) for number in "01")
    assert len(old["attempts"]) == len(new["attempts"]) == 1 and old["group_hash"] == new["group_hash"]
    assert new["run_dir"] == str(Path("sweep/1").absolute()) and new["run_label"] == "seed=2"


def test_its_run_is_continued_and_evaluated(old_record):
    kept = [override for override in read_overrides(Path("sweep/0")) if not override.startswith("training.epochs")]
    checkpoint = "training.checkpoint=sweep/0"
    record = laptime.run([*kept, "scheduler.epochs=1", "training.epochs=2", checkpoint, "logger=none"])
    assert record["status"] == "completed" and record["run_label"] == ""
    assert evaluate(["run=sweep/0", "latency.batch_sizes=[]"]) == 0
