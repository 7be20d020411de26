"""Loggers: their own files are read back after real runs."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support import processes
from tests.support.configs import composed
from tests.support.logged_values import (
    csv_values,
    mlflow_runs,
    mlflow_values,
    tensorboard_values,
    wandb_exit_code,
    wandb_records,
    wandb_run,
    wandb_values,
)
from tests.support.settings import NO_REPORT, TINY
from tests.user_classes.slow_logging import SECONDS

from laptime.config import targets
from laptime.errors import UserError
from laptime.record.files import flat_config, read_epochs, read_record

ALL_FOUR = "logger=[tensorboard,csv,mlflow,wandb]"
TOKEN = "Hunter2Two"
WITH_TOKEN = ["model._target_=nets_with_secrets.WithToken", "~model.hidden_sizes", "~model.dropout",
              f"+model.token={TOKEN}"]  # fmt: skip
NO_HIDDEN_SIZES = [override for override in TINY if not override.startswith("model.")]


class Nobody:
    """A server on this machine that never answers, and counts connections."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._callers: list[int] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def num_calls(self) -> int:
        """The number of connections so far."""
        with socket.create_connection(self._server.getsockname(), timeout=60) as probe:
            port = probe.getsockname()[1]
            processes.until(lambda: port in self._callers)  # then all earlier connections are counted too
            self._callers.remove(port)
        return len(self._callers)

    def _serve(self) -> None:
        while True:
            connection, address = self._server.accept()
            self._callers.append(address[1])
            connection.close()


@pytest.fixture(scope="module")
def nobody() -> Nobody:
    return Nobody()


@dataclass
class Followed:
    """A sweep with four loggers. Its runs have two ranks and two epochs, one without and one with the breakdown.

    Attributes:
        folder: where the command was typed.
        sweep: its directory.
        asked: network calls of its processes, each line with the id of the process.
        num_calls: connections of W&B's service process, which isn't Python, to the proxy of its environment.
    """

    folder: Path
    sweep: Path
    asked: list[str]
    num_calls: int

    @property
    def run(self) -> Path:
        """The run with the breakdown."""
        return self.sweep / "1"


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory, nobody: Nobody) -> Followed:
    folder = tmp_path_factory.mktemp("four")
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "https_proxy", "http_proxy"), nobody.address)
    environment = {
        "ASKED": str(folder / "asked"), "WANDB_BASE_URL": nobody.address, "WANDB_API_KEY": "0" * 40, **proxies,
    }  # fmt: skip
    done = processes.run(
        "-m", *TINY, NO_REPORT, ALL_FOUR, "strategy.world_size=2", "training.epochs=2",
        "+callbacks.audited._target_=audited.Audited", "measure.breakdown=false,true", "hydra.sweep.dir=night/sweep",
        cwd=folder, environment=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Followed(folder, folder / "night/sweep", (folder / "asked").read_text().splitlines(), nobody.num_calls())


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run in run/, whose rank 0 raises an error in the second epoch. Its model has a secret."""
    folder = tmp_path_factory.mktemp("failed")
    breaks = "+callbacks.breaks={_target_:breaking.BreakAt,rank:0,epoch:1,how:raise}"
    done = processes.run(
        *NO_HIDDEN_SIZES, *WITH_TOKEN, breaks, ALL_FOUR, "strategy.world_size=2", "training.epochs=3",
        "hydra.run.dir=run", cwd=folder,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    return folder


# The loggers of a complete sweep.


def test_all_loggers_have_the_same_values_under_the_same_names(followed):
    noted = mlflow_runs(followed.folder)[1]
    expected = mlflow_values(followed.folder, noted)
    assert {"train/loss", "val/accuracy", "test/accuracy", "comm/share", "hparam/epoch_time_s"} <= expected.keys()
    for values in (tensorboard_values(followed.run), csv_values(followed.run), wandb_values(followed.run)):
        assert values.keys() == expected.keys()
        for tag, points in expected.items():
            if tag.startswith("hparam/"):  # TensorBoard's HPARAMS tab reads them at step 0
                points = [(values[tag][0][0], value) for _, value in points]
            assert [step for step, _ in values[tag]] == [step for step, _ in points], tag
            assert [y for _, y in values[tag]] == pytest.approx([y for _, y in points], rel=1e-6), tag


def test_mlflow_has_each_epoch_once_with_two_ranks(followed):
    noted = mlflow_runs(followed.folder)[1]
    epochs = read_epochs(followed.run).query("rank == 0")
    values = mlflow_values(followed.folder, noted)
    assert values["train/loss"] == list(zip(epochs["epoch"], epochs["train_loss"], strict=True))
    assert values["time/epoch_s"][1][1] == read_record(followed.run)["timing"]["epoch_time_s"]


def test_mlflow_has_results_settings_and_that_the_run_finished(followed):
    noted = mlflow_runs(followed.folder)[1]
    record = read_record(followed.run)
    assert noted.info.status == "FINISHED"
    assert noted.data.metrics["test/accuracy"] == record["result"]["test_accuracy"]
    settings = flat_config(record["config"]) | {"experiment_name": "None", "runs_at_once": 1}
    assert noted.data.params == {key: str(value) for key, value in settings.items()}
    assert noted.data.params["strategy.world_size"] == "2"
    assert noted.data.tags["laptime.run_dir"] == str(followed.run)
    assert noted.data.tags["mlflow.source.git.commit"] == record["git"]["commit"]


def test_wandb_has_settings_and_status_but_no_machine_data(followed):
    records = wandb_records(followed.run)
    (settings,) = [record for record in records if record.WhichOneof("record_type") == "config"][:1]
    noted = {"/".join(item.nested_key) or item.key: item.value_json for item in settings.config.update}
    assert noted["training.epochs"] == "2" and noted["strategy.world_size"] == "2"
    assert wandb_exit_code(followed.run) == 0
    kinds = {record.WhichOneof("record_type") for record in records}
    assert kinds.isdisjoint({"stats", "output", "output_raw", "environment", "files"})


def test_runs_of_a_sweep_are_named_by_what_was_swept(followed):
    names = ["breakdown=False", "breakdown=True"]
    noted = mlflow_runs(followed.folder)
    assert [run.info.run_name for run in noted] == names
    assert {run.data.tags["laptime.sweep"] for run in noted} == {"night/sweep"}
    for number, name in enumerate(names):
        about = wandb_run(followed.sweep / str(number))
        assert (about.display_name, about.run_group, about.project) == (name, "night/sweep", "laptime")


def test_trackers_open_no_connection_to_other_machines(followed):
    """An audit hook sees Python's calls. W&B's service process isn't Python, and would use the proxy."""
    local = ("'127.0.0.1'", "'localhost'", "'::1'", "b'\\\\x00", "connect '/", "bind '/")
    assert [line for line in followed.asked if not any(address in line for address in local)] == []
    first_rank = str(read_record(followed.run)["strategy"]["rank_pids"][0])
    assert first_rank in {line.partition(" ")[0] for line in followed.asked}, "the hook sees how W&B is spoken to"
    assert followed.num_calls == 0


# The status of runs.


@pytest.mark.soak
def test_failed_run_has_failed_in_mlflow_and_wandb(failed):
    (noted,) = mlflow_runs(failed)
    assert noted.info.status == "FAILED" and noted.info.end_time is not None
    assert [step for step, _ in mlflow_values(failed, noted)["train/loss"]] == [0]
    assert noted.data.params["training.epochs"] == "3"
    assert wandb_exit_code(failed / "run") == 1


@pytest.mark.soak
def test_secrets_are_masked(failed):
    (noted,) = mlflow_runs(failed)
    assert noted.data.params["model.token"] == "***"
    written = [path for path in failed.rglob("*") if path.is_file() and ".hydra" not in path.parts]
    assert len(written) > 10
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []


@pytest.mark.soak
def test_run_with_a_killed_rank_0_has_failed_in_mlflow(train, work_folder):
    breaks = "+callbacks.breaks={_target_:breaking.BreakAt,rank:0,epoch:1,how:kill}"
    done = train(*TINY, breaks, "logger=mlflow", "strategy.world_size=2", "training.epochs=3", "hydra.run.dir=run")
    assert done.returncode == 1, done.stderr
    (noted,) = mlflow_runs(work_folder)
    assert noted.info.status == "FAILED" and noted.info.end_time is not None
    assert [step for step, _ in mlflow_values(work_folder, noted)["train/loss"]] == [0]


@pytest.mark.soak
def test_restarted_ranks_continue_the_same_mlflow_run(train, work_folder):
    breaks = "+callbacks.breaks={_target_:breaking.BreakAt,rank:0,epoch:1,how:kill,once:true}"
    done = train(*TINY, breaks, "logger=mlflow", "strategy.world_size=2", "strategy.max_restarts=1",
                 "training.epochs=3", "hydra.run.dir=run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (noted,) = mlflow_runs(work_folder)
    assert noted.info.status == "FINISHED"
    assert [step for step, _ in mlflow_values(work_folder, noted)["train/loss"]] == [0, 1, 2]


@pytest.mark.soak
def test_interrupted_run_is_killed_in_mlflow_and_ended_in_wandb(train, work_folder):
    """The trackers' environment variables select where the run is stored."""
    environment = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{work_folder / 'elsewhere.db'}", "MLFLOW_EXPERIMENT_NAME": "night",
        "WANDB_PROJECT": "speed", "WANDB_ENTITY": "a-team", "WANDB_MODE": "offline",
    }  # fmt: skip
    done = train(*TINY, "+callbacks.ends={_target_:process_faults.TerminateAt,epoch:1}", "logger=[mlflow,wandb]",
                 "training.epochs=3", "hydra.run.dir=run", **environment)  # fmt: skip
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    (work_folder / "elsewhere.db").rename(work_folder / "mlflow.db")  # where the test reads it
    (noted,) = mlflow_runs(work_folder, "night")
    assert noted.info.status == "KILLED"
    assert wandb_exit_code(work_folder / "run") == 130
    about = wandb_run(work_folder / "run")
    assert (about.project, about.entity) == ("speed", "a-team")


@pytest.mark.soak
def test_killed_wandb_process_affects_only_its_own_run(train, work_folder):
    kills = ["+callbacks.kills._target_=process_faults.KillWandb", "+callbacks.kills.epoch=1,9"]
    done = train("-m", *TINY, NO_REPORT, *kills, "logger=wandb", "training.epochs=3", "hydra.sweep.dir=s")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("logger.wandb can't write") == 1 and "Traceback" not in done.stderr, done.stderr
    assert [read_record(work_folder / "s" / run)["status"] for run in "01"] == ["completed"] * 2
    assert [step for step, _ in wandb_values(work_folder / "s/1")["train/loss"]] == [0, 1, 2]


def test_a_tracker_that_does_not_answer_is_left_out_with_a_warning(nobody, train, work_folder):
    before = nobody.num_calls()
    done = train(*TINY, "logger=mlflow", f"logger.mlflow.tracking_uri={nobody.address}", "training.epochs=1",
                 "hydra.run.dir=run", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("logger.mlflow can't write") == 1, done.stderr
    assert nobody.num_calls() > before, done.stderr
    assert read_record(work_folder / "run")["status"] == "completed"


def test_no_timed_epoch_contains_logging(train, work_folder):
    done = train(*TINY, "+logger.slow={_target_:slow_logging.SlowLogger}", "training.epochs=3", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert (work_folder / "logged").read_text().count("\n") >= 3
    epochs = read_epochs(work_folder / "run")["epoch_time_s"]
    assert len(epochs) == 3 and epochs.max() < SECONDS


# Configuration.


@pytest.fixture
def own_variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Removes the trackers' environment variables."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "WANDB_"))]:
        monkeypatch.delenv(name)
    yield monkeypatch


def logger_node(name: str) -> dict[str, Any]:
    node: dict[str, Any] = composed.__wrapped__(f"logger={name}").logger[
        name
    ]  # not cached, because environment variables change it
    return node


@pytest.mark.unit
def test_mlflow_environment_variables_are_respected(own_variables):
    node = logger_node("mlflow")
    assert (node["tracking_uri"], node["experiment_name"]) == ("sqlite:///mlflow.db", "laptime")
    own_variables.setenv("MLFLOW_TRACKING_URI", "http://somewhere:5000")
    own_variables.setenv("MLFLOW_EXPERIMENT_NAME", "night")
    node = logger_node("mlflow")
    assert (node["tracking_uri"], node["experiment_name"]) == ("http://somewhere:5000", "night")


def begun_with(monkeypatch: pytest.MonkeyPatch, run_dir: Path) -> dict[str, Any]:
    """The arguments of wandb.init with the composed configuration."""
    import wandb

    from laptime.loggers.tracker import Run
    from laptime.loggers.wandb import WandB

    asked: dict[str, Any] = {}

    def init(**how: Any) -> SimpleNamespace:
        asked.update(how)
        return SimpleNamespace(define_metric=lambda *names, **more: None)

    monkeypatch.setattr(wandb, "init", init)
    tracker = targets.build("logger.wandb", logger_node("wandb"), WandB)
    tracker.begin(Run("0123456789abcdef", "seed=1", "night/sweep", run_dir, None))
    return asked


@pytest.mark.unit
def test_wandb_is_offline_unless_its_environment_variables_change_it(own_variables, work_folder):
    asked = begun_with(own_variables, work_folder)
    assert (asked["project"], asked["entity"], asked["mode"], asked["resume"]) == ("laptime", None, "offline", None)


@pytest.mark.unit
def test_wandb_online_mode_continues_the_same_run(own_variables, work_folder):
    own_variables.setenv("WANDB_PROJECT", "speed")
    own_variables.setenv("WANDB_ENTITY", "a-team")
    own_variables.setenv("WANDB_MODE", "online")
    asked = begun_with(own_variables, work_folder)
    assert (asked["project"], asked["entity"], asked["mode"]) == ("speed", "a-team", "online")
    assert (asked["id"], asked["resume"]) == ("0123456789abcdef", "allow")
    assert (asked["name"], asked["group"], asked["dir"]) == ("seed=1", "night/sweep", str(work_folder))
    settings = asked["settings"]
    assert settings.console == "off" and settings.disable_code and settings.disable_git
    assert settings.x_disable_stats and settings.x_disable_meta and settings.x_disable_machine_info


@pytest.mark.unit
@pytest.mark.parametrize(("option", "package"), [("mlflow", "mlflow"), ("mlflow", "sqlalchemy"), ("wandb", "wandb")])
def test_missing_extra_is_named_before_anything_is_made(option, package, monkeypatch, work_folder, call):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"laptime.loggers.{option}", raising=False)
    monkeypatch.delattr(f"laptime.loggers.{option}", raising=False)
    ended = call(f"logger={option}")
    assert ended.returncode == 2
    assert f'pip install "laptime[{option}]"' in ended.stderr and package in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert list(work_folder.iterdir()) == []


@pytest.mark.unit
@pytest.mark.parametrize("override", ["logger=tensorbord", "logger=[csv,tensorbord]"])
def test_unknown_logger_lists_the_available_ones(override, work_folder, call):
    ended = call(override)
    assert ended.returncode == 2
    assert "logger=tensorbord: no such option" in ended.stderr
    assert "csv, mlflow, none, tensorboard, wandb" in ended.stderr
    assert list(work_folder.iterdir()) == []


STORES = [("mlruns", "Use sqlite:///mlflow.db"), ("sqlite:///nowhere/a.db", "there is no folder"),
          ("gopher://a", "gopher")]  # fmt: skip


@pytest.mark.parametrize(("uri", "words"), STORES)
def test_invalid_mlflow_store_is_refused(uri, words, work_folder):
    from laptime.loggers.mlflow import MLflow
    from laptime.loggers.tracker import Run

    with pytest.raises(UserError) as refused:
        MLflow(uri, "laptime").begin(Run("0123456789abcdef", "one", None, work_folder, None))
    assert f"logger.mlflow.tracking_uri={uri}: " in str(refused.value) and words in str(refused.value)


def test_a_refused_store_leaves_no_run(train, work_folder):
    ended = train(*TINY, "logger=mlflow", "logger.mlflow.tracking_uri=sqlite:///nowhere/a.db")
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "logger.mlflow.tracking_uri=" in ended.stderr.splitlines()[-1]
    assert list(work_folder.rglob("run.json")) == []


@pytest.mark.unit
def test_unknown_wandb_mode_is_refused():
    node = {"_target_": "laptime.loggers.wandb.WandB", "project": "p", "entity": None, "mode": "sideways"}
    with pytest.raises(UserError, match="must be offline or online or disabled"):
        targets.check("logger.wandb", node)
