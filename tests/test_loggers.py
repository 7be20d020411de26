"""Loggers: what each has noted is read back with its maker's own reader, after real runs of the real command."""

import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.conftest import TRAIN
from tests.test_network import HOOK, is_local
from wandb.proto import wandb_internal_pb2

from laptime import targets
from laptime.cli import main
from laptime.errors import UserError
from laptime.record import flat_config, read_epochs, read_record

QUICK = ["device=cpu", "dataset.limit=500", "measure.peak=false"]
FOUR = "logger=[tensorboard,csv,mlflow,wandb]"


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TRAIN), *arguments, *QUICK], capture_output=True, text=True, cwd=folder,
        env=os.environ | environment, timeout=600,
    )  # fmt: skip


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two ranks and two epochs that four loggers have followed; its directory is run/."""
    folder = tmp_path_factory.mktemp("four")
    done = run(folder, FOUR, "strategy.world_size=2", "training.epochs=2", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    return folder


def mlflow_runs(folder: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("laptime")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"]))


def mlflow_values(folder: Path, run: Run) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every metric."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    return {
        tag: [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, tag)]
        for tag in run.data.metrics
    }


def wandb_records(path: Path) -> list[Any]:
    """The records of a .wandb file: blocks of 32 KiB, each of pieces with a checksum, a length and a kind before it
    (whole, first, middle, last), as in LevelDB's log."""
    content, at, records, parts = path.read_bytes(), 7, [], b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            records.append(record)
            parts = b""
    return records


def wandb_file(run_dir: Path) -> Path:
    (path,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    return path


def wandb_values(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    values: dict[str, list[tuple[int, float]]] = {}
    for record in wandb_records(wandb_file(run_dir)):
        items = {"/".join(each.nested_key) or each.key: each.value_json for each in record.history.item}
        for tag, value in items.items():
            if not tag.startswith("_") and tag != "epoch":
                values.setdefault(tag, []).append((int(items["epoch"]), float(value)))
    return values


def tensorboard_values(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    values: dict[str, list[tuple[int, float]]] = {}
    for path in run_dir.glob("tensorboard/**/events*"):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            values.setdefault(tag, []).extend((each.step, each.value) for each in events.Scalars(tag))
    return values


def csv_values(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    table = pd.read_csv(run_dir / "csv/metrics.csv")
    return {
        str(tag): [(int(step), value) for step, value in zip(table["step"], table[tag], strict=True) if value == value]
        for tag in table.columns
        if tag != "step"
    }


def test_all_loggers_have_the_same_values_under_the_same_names(two_ranks):
    (noted,) = mlflow_runs(two_ranks)
    expected = mlflow_values(two_ranks, noted)
    assert {"train/loss", "val/accuracy", "test/accuracy", "comm/share", "hparam/epoch_time_s"} <= expected.keys()
    run_dir = two_ranks / "run"
    for values in (tensorboard_values(run_dir), csv_values(run_dir), wandb_values(run_dir)):
        assert values.keys() == expected.keys()
        for tag, points in expected.items():
            if tag.startswith("hparam/"):  # TensorBoard has them at step 0, where its HPARAMS tab looks
                points = [(values[tag][0][0], value) for _, value in points]
            assert [step for step, _ in values[tag]] == [step for step, _ in points], tag
            assert [each for _, each in values[tag]] == pytest.approx([each for _, each in points], rel=1e-6), tag


def test_mlflow_has_each_epoch_once_though_two_ranks_trained(two_ranks):
    (noted,) = mlflow_runs(two_ranks)
    epochs = read_epochs(two_ranks / "run").query("rank == 0")
    values = mlflow_values(two_ranks, noted)
    assert values["train/loss"] == list(zip(epochs["epoch"], epochs["train_loss"], strict=True))
    assert values["time/epoch_s"][1][1] == read_record(two_ranks / "run")["timing"]["epoch_time_s"]


def test_mlflow_has_results_settings_and_that_the_run_finished(two_ranks):
    (noted,) = mlflow_runs(two_ranks)
    record = read_record(two_ranks / "run")
    assert noted.info.status == "FINISHED"
    assert noted.data.metrics["test/accuracy"] == record["result"]["test_accuracy"]
    assert noted.data.params == {key: str(value) for key, value in flat_config(record["config"]).items()}
    assert noted.data.params["strategy.world_size"] == "2"
    assert noted.data.tags["laptime.run_dir"] == str(two_ranks / "run")
    assert noted.data.tags["mlflow.source.git.commit"] == record["git"]["commit"]


def test_wandb_has_settings_and_how_the_run_ended_and_nothing_of_the_machine(two_ranks):
    records = wandb_records(wandb_file(two_ranks / "run"))
    (settings,) = [each for each in records if each.WhichOneof("record_type") == "config"][:1]
    noted = {"/".join(each.nested_key) or each.key: each.value_json for each in settings.config.update}
    assert noted["training.epochs"] == "2" and noted["strategy.world_size"] == "2"
    (end,) = [each.exit for each in records if each.WhichOneof("record_type") == "exit"]
    assert end.exit_code == 0
    kinds = {each.WhichOneof("record_type") for each in records}
    assert kinds.isdisjoint({"stats", "output", "output_raw", "environment", "files"})


def test_runs_of_a_sweep_are_named_by_what_was_swept(work_folder):
    done = run(work_folder, "-m", "logger=[mlflow,wandb]", "seed=1,2", "training.epochs=1", "measure.breakdown=false",
               "hydra.sweep.dir=night/sweep")  # fmt: skip
    assert done.returncode == 0, done.stderr
    noted = mlflow_runs(work_folder)
    assert [each.info.run_name for each in noted] == ["seed=1", "seed=2"]
    assert {each.data.tags["laptime.sweep"] for each in noted} == {"night/sweep"}
    for number, name in enumerate(["seed=1", "seed=2"]):
        records = wandb_records(wandb_file(work_folder / "night/sweep" / str(number)))
        (about,) = [each.run for each in records if each.WhichOneof("record_type") == "run"]
        assert (about.display_name, about.run_group, about.project) == (name, "night/sweep", "laptime")


@pytest.mark.parametrize("how", ["raise", "kill"])
def test_failed_run_has_failed_for_mlflow_whatever_became_of_its_first_rank(how, breaking, work_folder):
    done = run(work_folder, *breaking(0, 1, how), "logger=mlflow", "hydra.run.dir=run")
    assert done.returncode == 1, done.stderr
    (noted,) = mlflow_runs(work_folder)
    assert noted.info.status == "FAILED" and noted.info.end_time is not None
    assert [step for step, _ in mlflow_values(work_folder, noted)["train/loss"]] == [0]
    assert noted.data.params["training.epochs"] == "3"


def test_ranks_that_start_again_go_on_with_the_same_mlflow_run(breaking, work_folder):
    done = run(work_folder, *breaking(0, 1, "kill", once=True), "logger=mlflow", "strategy.max_restarts=1",
               "hydra.run.dir=run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (noted,) = mlflow_runs(work_folder)
    assert noted.info.status == "FINISHED"
    assert [step for step, _ in mlflow_values(work_folder, noted)["train/loss"]] == [0, 1, 2]


INTERRUPTS = """
import os, signal
from pytorch_lightning.callbacks import Callback


class Interrupts(Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
"""


def test_interrupted_run_was_killed_for_mlflow_and_ended_for_wandb(work_folder):
    (work_folder / "odd.py").write_text(INTERRUPTS)
    done = run(work_folder, "+callbacks.x._target_=odd.Interrupts", "logger=[mlflow,wandb]", "training.epochs=3",
               "hydra.run.dir=run")  # fmt: skip
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    (noted,) = mlflow_runs(work_folder)
    assert noted.info.status == "KILLED"
    (end,) = [each.exit for each in wandb_records(wandb_file(work_folder / "run")) if each.HasField("exit")]
    assert end.exit_code == 130


KILLS_WANDB = """
import psutil
from pytorch_lightning.callbacks import Callback


class Kills(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == self.epoch:
            (service,) = [child for child in psutil.Process().children() if child.name() == "wandb-core"]
            service.kill()
            service.wait()
"""


def test_a_killed_process_of_wandb_costs_its_own_run_alone(work_folder):
    (work_folder / "odd.py").write_text(KILLS_WANDB)
    kills = ["+callbacks.x._target_=odd.Kills", "+callbacks.x.epoch=1,9"]
    done = run(work_folder, "-m", *kills, "logger=wandb", "training.epochs=3", "hydra.sweep.dir=s")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("logger.wandb can't write") == 1 and "Traceback" not in done.stderr, done.stderr
    assert [read_record(work_folder / "s" / run)["status"] for run in "01"] == ["completed"] * 2
    assert [step for step, _ in wandb_values(work_folder / "s/1")["train/loss"]] == [0, 1, 2]


NOBODY = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    while True:
        connection, address = server.accept()
        print(address[1], flush=True)
        connection.close()
"""


@pytest.fixture
def nobody() -> Iterator[tuple[str, Callable[[], int]]]:
    """The address of a server, a process of its own that answers nothing; and how often it was called so far."""
    with subprocess.Popen([sys.executable, "-c", NOBODY], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())

        def called() -> int:
            with socket.create_connection(("127.0.0.1", port)) as own:  # those before it are noted by now
                own_port = own.getsockname()[1]
                assert server.stdout is not None
                return sum(1 for _ in iter(lambda: int(server.stdout.readline()), own_port))

        yield f"http://127.0.0.1:{port}", called
        server.kill()


def test_a_run_with_trackers_asks_nobody_beyond_this_machine(nobody, work_folder):
    """Python's own calls are seen by an audit hook; those of W&B's second process, which is none of Python, would go to
    the proxy that the environment names."""
    address, called = nobody
    (work_folder / "hook").mkdir()
    (work_folder / "hook/sitecustomize.py").write_text(HOOK)
    asked = work_folder / "asked"
    environment = {
        "PYTHONPATH": os.pathsep.join([str(work_folder / "hook"), os.environ.get("PYTHONPATH", "")]),
        "ASKED": str(asked), "WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40,
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "https_proxy", "http_proxy"), address),
    }  # fmt: skip
    done = run(work_folder, FOUR, "training.epochs=1", "hydra.run.dir=run", **environment)
    assert done.returncode == 0, done.stderr
    assert [line for line in asked.read_text().splitlines() if not is_local(line)] == []
    assert called() == 0
    assert mlflow_runs(work_folder) and wandb_values(work_folder / "run")


def test_a_tracker_that_does_not_answer_is_left_out_with_a_warning(nobody, work_folder):
    address, called = nobody
    done = run(work_folder, "logger=mlflow", f"logger.mlflow.tracking_uri={address}", "training.epochs=1",
               "hydra.run.dir=run", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("logger.mlflow can't write") == 1, done.stderr
    assert called() > 0, done.stderr
    assert read_record(work_folder / "run")["status"] == "completed"


def test_secrets_are_masked(work_folder):
    (work_folder / "odd.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self, token):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    net = ["model._target_=odd.Net", "~model.hidden_sizes", "~model.dropout", "+model.token=Hunter2Two"]
    done = run(work_folder, *net, FOUR, "training.epochs=1", "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    (noted,) = mlflow_runs(work_folder)
    assert noted.data.params["model.token"] == "***"
    written = [path for path in work_folder.rglob("*") if path.is_file() and ".hydra" not in path.parts]
    assert len(written) > 10 and [path for path in written if b"Hunter2Two" in path.read_bytes()] == []


SLOW = """
import time
from pytorch_lightning.loggers import Logger


class Slow(Logger):
    name = version = "slow"

    def log_hyperparams(self, params):
        pass

    def log_metrics(self, metrics, step=None):
        time.sleep(5)
"""


def test_no_timed_epoch_contains_logging(work_folder):
    (work_folder / "odd.py").write_text(SLOW)
    done = run(work_folder, "~logger.tensorboard", "+logger.slow={_target_:odd.Slow}",
               "training.batch_size=10", "training.epochs=3", "hydra.run.dir=run")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read_epochs(work_folder / "run")["epoch_time_s"].iloc[1:].min() < 5


@pytest.mark.parametrize(("option", "package"), [("mlflow", "mlflow"), ("mlflow", "sqlalchemy"), ("wandb", "wandb")])
def test_missing_extra_is_named_before_anything_is_made(option, package, monkeypatch, work_folder, capfd):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"laptime.loggers.{option}", raising=False)
    monkeypatch.delattr(f"laptime.loggers.{option}", raising=False)
    with pytest.raises(SystemExit) as end:
        main([*QUICK, f"logger={option}"])
    assert end.value.code == 2
    errors = capfd.readouterr().err
    assert f'pip install "laptime[{option}]"' in errors and package in errors and len(errors.splitlines()) == 1
    assert list(work_folder.iterdir()) == []


@pytest.mark.parametrize("typed", ["logger=tensorbord", "logger=[csv,tensorbord]"])
def test_unknown_logger_lists_those_that_there_are(typed, work_folder, capfd):
    with pytest.raises(SystemExit) as end:
        main([*QUICK, typed])
    assert end.value.code == 2
    errors = capfd.readouterr().err
    assert "logger=tensorbord: no such option" in errors and "csv, mlflow, none, tensorboard, wandb" in errors
    assert list(work_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "words"),
    [("mlruns", "Use sqlite:///mlflow.db"), ("sqlite:///nowhere/a.db", "there is no folder"), ("gopher://a", "gopher")],
)
def test_store_that_cannot_be_is_refused(uri, words, work_folder, capfd):
    with pytest.raises(SystemExit) as end:
        main([*QUICK, "logger=mlflow", f"logger.mlflow.tracking_uri={uri}"])
    assert end.value.code == 2
    errors = capfd.readouterr().err.splitlines()[-1]
    assert "logger.mlflow.tracking_uri=" in errors and words in errors
    assert not (work_folder / "outputs").exists() or not list((work_folder / "outputs").rglob("run.json"))


def test_wandb_knows_its_modes_alone():
    node = {"_target_": "laptime.loggers.wandb.WandB", "project": "p", "entity": None, "mode": "sideways"}
    with pytest.raises(UserError, match="must be offline or online or disabled"):
        targets.check("logger.wandb", node)
