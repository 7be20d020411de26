"""The command line: mistakes (exit code 2, at most two lines, nothing left behind), directories, help, completion."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest

import laptime
from laptime.cli import main
from laptime.config.composition import config_dir
from laptime.errors import UserError
from laptime.record.directory import RunDir
from laptime.record.files import read_record
from laptime.sweeps.labels import shared_overrides, sweep_label
from tests.support.settings import NO_REPORT, TINY

ONE_EPOCH = (*TINY, "training.epochs=1")

MISTAKES = {
    "dataset=mnits": ["dataset=mnits", "cifar10, fashion_mnist, mnist, synthetic"],
    "device=gpu": ["device=gpu", "device=cuda"],
    "=": ["'='", "has no key"],
    "experiment=nope": ["experiment=nope", "quick"],
    "training.epocs=3": ["training.epocs=3", "training.epochs"],
    "+training.epocs=3": ["training.epocs=3", "training.epochs"],
    "++training.epocs=3": ["training.epocs=3", "training.epochs"],
    "dataset.limti=3": ["dataset.limti=3", "dataset.limit"],
    "+dataset.limti=3": ["dataset.limti=3", "dataset.limit"],
    "+sed=3": ["sed=3", "seed"],
    "+training.epochs=1": ["training.epochs", "Leave out the +"],
    "~training.epochs": ["training.epochs"],
    "training.epochs=abc": ["training.epochs=abc", "a whole number"],
    "training.epochs=1.5": ["training.epochs=1.5", "a whole number"],
    "training.epochs=null": ["training.epochs=null", "must not be null"],
    "training.compile=maybe": ["training.compile=maybe", "true or false"],
    "dataset.val_fraction=abc": ["dataset.val_fraction=abc", "a number"],
    "dataset.limit=true": ["dataset.limit=true", "a whole number or null"],
    "dataset.pipeline=disk": ["dataset.pipeline=disk", "memory or mapped or workers"],
    "model.hidden_sizes=5": ["model.hidden_sizes=5", "a list"],
    "optimizer.lr=fast": ["optimizer.lr=fast", "a number"],
    "training.epochs=0": ["training.epochs=0", "at least 1"],
    "training.epochs=-3": ["training.epochs=-3", "at least 1"],
    "training.batch_size=0": ["training.batch_size=0", "at least 1"],
    "training.batch_size=48001": ["training.batch_size=48001", "48000 samples"],
    "dataset.val_fraction=1": ["dataset.val_fraction=1", "[0, 1)"],
    "dataset.val_fraction=-0.1": ["dataset.val_fraction=-0.1", "[0, 1)"],
    "measure.warmup_epochs=5": ["measure.warmup_epochs=5", "training.epochs=5"],
    "measure.warmup_epochs=soon": ["measure.warmup_epochs=soon", "auto"],
    "model.dropout=1": ["model.dropout=1", "[0, 1)"],
    "model.dropout=-0.5": ["model.dropout=-0.5", "[0, 1)"],
    "optimizer.lr=0": ["optimizer.lr=0", "above 0"],
    "optimizer.lr=-0.1": ["optimizer.lr=-0.1", "above 0"],
    "training.checkpoint=nope.ckpt": ["training.checkpoint=nope.ckpt", "no file"],
    "training.checkpoint=latest": ["training.checkpoint=latest", "no run"],
    "training.precision=8-bit": ["training.precision=8-bit", "bf16-mixed"],
    "training.precision=16-mixed device=cpu": ["training.precision=16-mixed", "CPU", "bf16-mixed"],
    "device=cuda device.fallback=error": ["device=cuda", "not available"],
    "device.fallback=gpu": ["device.fallback=gpu", "cpu, error"],
    "dataset.val_fraction=0 training.early_stopping_patience=2": ["early_stopping_patience", "dataset.val_fraction=0"],
    "dataset.val_fraction=0 scheduler=plateau": ["Plateau", "dataset.val_fraction=0"],
    "dataset.val_fraction=0 measure.target_accuracy=0.9": ["target_accuracy", "dataset.val_fraction=0"],
    "training.num_microbatches=3": ["num_microbatches=3", "batch_size=64"],
    "strategy.world_size=0": ["strategy.world_size=0", "at least 1"],
    "strategy.timeout_s=1e10": ["strategy.timeout_s=10000000000.0", "[1, 2,000,000]"],
    "strategy.threads_per_rank=many": ["threads_per_rank=many", "auto"],
    "seed=-1": ["seed=-1"],
    "optimized_metric=speed": ["optimized_metric=speed", "val_loss"],
    "model._target_=nowhere.Net": ["model._target_=nowhere.Net", "security.allowed_targets=[nowhere]"],
    "model._target_=nowhere.Net security.allowed_targets=[nowhere]": ["model._target_=nowhere.Net", "imported"],
    "training.epochs=${nowhere}": ["training.epochs", "nowhere"],
    "training.epochs=???": ["training.epochs"],
    "training.epochs=[": ["training.epochs=["],
    "training.epochs=1,2": ["training.epochs=1,2", "-m"],
    "epochs": ["epochs", "key=value"],
    "hydra.run.dir=/dev/null/here": ["hydra.run.dir=/dev/null/here", "can't be written"],
    "callbacks.progress_bar=5": ["callbacks.progress_bar=5"],
    "dataset=synthetic dataset.shape=[3,0,3]": ["dataset.shape=[3, 0, 3]"],
    "dataset=synthetic dataset.shape=[2,8,8] dataset.pipeline=workers": ["dataset.pipeline=workers", "1 or 3"],
    "--config-dir nowhere": ["nowhere"],
    "optimizer.lr=null": ["optimizer.lr=null", "must be a number."],
    "optimizer=sgd optimizer.momentum=0": ["optimizer", "momentum"],
    "scheduler.step_size=0": ["scheduler", "StepLR"],
    "model=null": ["model=null", "the name of an option"],
    "optimizer=null model=cnn": ["optimizer=null", "sgd"],
    "logger=[csv,null]": ["logger=[csv,null]", "none"],
    "logger=": ["logger=", "none"],
    "hydra/launcher=null seed=3": ["hydra/launcher=null", "basic"],
    "+experiment=quick": ["+experiment=quick", "Leave out the +"],
    "model._target_=builtins.dict security.allowed_targets=[builtins]": ["model", "must create a Module"],
    "model._target_=torch.nn.Flatten ~model.hidden_sizes ~model.dropout": ["Flatten", "(2, 784)", "(2, 10)"],
    "optimizer._target_=torch.optim.LBFGS ~optimizer.fused ~optimizer.weight_decay": ["LBFGS"],
    "+callbacks.odd={_target_:builtins.dict} security.allowed_targets=[builtins.dict]": [
        "callbacks.odd",
        "must create a Callback",
    ],
    "+callbacks.bar={_target_:pytorch_lightning.callbacks.RichProgressBar}": ["callbacks"],
    "training.checkpoint=~nosuchuser/x": ["training.checkpoint=~nosuchuser/x"],
    "-m seed=range(0,1000000000)": ["seed=range(0,1000000000)", "1,000,000,000 runs", "10,000"],
    "-m seed=range(0,1000) training.epochs=range(1,50)": ["seed=range(0,1000)", "49,000 runs"],
    "-m seed=1,1": ["seed=1", "two runs"],
    "-m seed=interval(1,3)": ["seed=interval(1,3)", "sweeper"],
    "~seed": ["~seed"],
    "~optimized_metric": ["~optimized_metric"],
    "hydra.mode=MULTIRUN": ["hydra.mode", "-m"],
    "strategy.threads_per_rank=100000": ["strategy.threads_per_rank=100000", "1024"],
    "training.eval_batch_size=1000000000000000000000": ["training.eval_batch_size", "at most"],
    "+seeds=???": ["seeds=???", "seed?"],
    "+seeds=${nowhere}": ["seeds=${nowhere}", "seed?"],
    "run_dir=here": ["run_dir=here", "hydra.run.dir"],
    "+run_label=here": ["run_label=here", "hydra.run.dir"],
    "experiment_name=quick": ["experiment_name=quick", "experiment=..."],
    "logger.tensorboard.save_dir=${run_dir}": ["logger.tensorboard.save_dir=${run_dir}", "Write ${laptime:run_dir}"],
    "logger.tensorboard.save_dir=${laptime:nowhere}": ["logger.tensorboard.save_dir", "run_dir, run_label"],
    "dataset=synthetic dataset.shape=[3,100000,100000]": ["dataset=synthetic", "GB are free", "mapped"],
    "--cfg job training.epochs=0": ["training.epochs=0", "at least 1"],
    "--help training.epocs=3": ["training.epocs=3", "training.epochs"],
    "scheduler.gamma=nan": ["scheduler.gamma=nan"],
    "model.dropout=nan": ["model.dropout=nan"],
    "dataset.val_fraction=nan": ["dataset.val_fraction=nan"],
    "--info config training.epocs=3": ["training.epocs=3", "training.epochs"],
    "-m hydra.verbose=true,false": ["hydra.verbose=true,false", "one value"],
    "-m hydra/launcher=basic,joblib": ["hydra/launcher=basic,joblib", "one value"],
}


@pytest.fixture
def refused(call, monkeypatch):
    """`call` for commands that are refused: the server of the ranks is not started in advance."""
    monkeypatch.setattr("laptime.runner.fresh_processes.preload", lambda: None)
    return call


@pytest.mark.parametrize("arguments", MISTAKES)
def test_a_mistake_prints_at_most_two_lines_and_leaves_no_files(arguments, refused, work_folder):
    ended = refused(*arguments.split())
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert len(ended.stderr.strip().splitlines()) <= 2, ended.stderr
    assert ended.stderr.startswith("error: ")
    for words in MISTAKES[arguments]:
        assert words in ended.stderr
    assert list(work_folder.iterdir()) == []


@pytest.mark.soak
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            "++training.epochs=1 dataset.num_train=2000 training.batch_size=1600 model.dropout=0 device=cuda",
            {"epochs": 1, "batch_size": 1600},
        ),
        (
            "training.epochs=2 measure.warmup_epochs=1 dataset.num_train=2000 dataset.val_fraction=0.99 "
            "training.batch_size=16 training.num_microbatches=2 training.precision=bf16-mixed",
            {"epochs": 2, "batch_size": 16, "num_microbatches": 2, "precision": "bf16-mixed"},
        ),
        ("training.epochs=1 dataset.val_fraction=0 scheduler=step", {"epochs": 1}),
    ],
    ids=["largest batch", "smallest training set", "no validation"],
)
def test_valid_values_close_to_mistakes_train(arguments, expected, train, the_run):
    ended = train(*TINY, *arguments.split())
    assert ended.returncode == 0, ended.stderr
    record = the_run()[1]
    assert record["status"] == "completed"
    assert {key: record["config"]["training"][key] for key in expected} == expected


def test_hydra_full_error_raises_the_exception(monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError):
        main(["dataset=mnits"])


def test_the_real_command_reports_a_mistake_without_traceback(train, work_folder):
    done = train("dataset=mnits")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert list(work_folder.iterdir()) == []


def test_a_mistake_in_a_job_is_found_before_the_sweep_starts(refused, work_folder):
    ended = refused("-m", "training.epochs=1,0", "dataset.limit=2000")
    assert ended.returncode == 2 and "training.epochs=0" in ended.stderr
    assert list(work_folder.iterdir()) == []


def test_a_run_is_never_overwritten(trained, train):
    run = trained(*ONE_EPOCH)
    before = (run / "run.json").read_bytes()
    ended = train(*ONE_EPOCH, f"hydra.run.dir={run}")
    assert ended.returncode == 2 and f"hydra.run.dir={run}" in ended.stderr
    assert (run / "run.json").read_bytes() == before


def test_a_users_own_files_survive_a_mistake(refused, work_folder):
    (work_folder / "mine").mkdir()
    (work_folder / "mine" / "notes.txt").write_text("keep")
    assert refused("hydra.run.dir=mine", "model.dropout=2").returncode == 2
    assert [path.name for path in (work_folder / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.unit
@pytest.mark.parametrize("file", ["run.json", "epochs.csv", "plan.json", "multirun.yaml", "checkpoints/last.ckpt"])
def test_a_directory_with_a_file_of_a_run_is_refused(file, call, work_folder):
    path = work_folder / "copy" / file
    path.parent.mkdir(parents=True)
    path.write_text("kept")
    for arguments in (["hydra.run.dir=copy"], ["-m", "seed=1,2", "hydra.sweep.dir=copy"]):
        done = call(*TINY, *arguments)
        assert done.returncode == 2 and done.stderr.startswith(f"error: {arguments[-1]}: ")
    assert [file for file in work_folder.rglob("*") if file.is_file()] == [path] and path.read_text() == "kept"


@pytest.mark.parametrize("how", [iter, tuple, lambda overrides: (override for override in overrides)])
def test_overrides_from_python_may_be_any_iterable(how, work_folder):
    assert laptime.run(how([*TINY, "training.epochs=1"]))["dataset"]["name"] == "synthetic"


@pytest.mark.unit
@pytest.mark.parametrize("wrong", [1, None, Path("seed=1"), b"seed=1", ["seed=1"]])
def test_overrides_from_python_are_text(wrong):
    with pytest.raises(UserError, match=r"^laptime\.run"):
        laptime.run(["seed=1", wrong])


def test_runs_with_the_same_directory_name_get_their_own(work_folder):
    first, second, third = (RunDir("outputs/12-00-00", may_move=True).path for _ in range(3))
    assert [path.name for path in (first, second, third)] == ["12-00-00", "12-00-00_1", "12-00-00_2"]


def test_special_characters_in_a_directory_name_are_kept(train, work_folder):
    ended = train(*ONE_EPOCH, "hydra.run.dir='out of, (the) {ordinary}=é'")
    assert ended.returncode == 0, ended.stderr
    assert (work_folder / "out of, (the) {ordinary}=é" / "run.json").is_file()


def test_a_sweep_directory_is_never_reused(train, work_folder):
    """Even after a failed sweep. Its second job can't be built; the first one completes."""
    sweep = ["-m", *ONE_EPOCH, NO_REPORT, "training.batch_size=32,9999", "hydra.sweep.dir=mine"]
    ended = train(*sweep)
    assert ended.returncode == 2
    assert "1 of 2 runs of the sweep failed" in ended.stderr and "training.batch_size=9999" in ended.stderr
    assert read_record(work_folder / "mine" / "0")["status"] == "completed"
    assert read_record(work_folder / "mine" / "1")["status"] == "failed"
    before = [path.read_bytes() for path in sorted(work_folder.rglob("run.json"))]
    again = train(*sweep)
    assert again.returncode == 2 and "hydra.sweep.dir=mine" in again.stderr
    assert [path.read_bytes() for path in sorted(work_folder.rglob("run.json"))] == before


def test_a_model_beside_its_configuration_trains(train, work_folder, the_run):
    (work_folder / "own/model").mkdir(parents=True)
    (work_folder / "own/model/own_net.yaml").write_text("_target_: own_net_module.WidthNet\nwidth: 8\n")
    shutil.copy(Path(__file__).with_name("user_classes") / "width_net.py", work_folder / "own/own_net_module.py")
    overrides = [override for override in ONE_EPOCH if not override.startswith("model.")]
    ended = train("--config-dir", "own", *overrides, "model=own_net")
    assert ended.returncode == 0, ended.stderr
    record = the_run()[1]
    assert record["model"] == record["model"] | {"name": "widthnet", "num_parameters": 64 * 8 + 8 + 80 + 10}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("job", "label"),
    [
        (["seed=1", "strategy.world_size=2", "training.epochs=2"], "seed=1 ws=2"),
        (["+model.width=a/b", "training.epochs=2"], "width=a_b"),
    ],
)
def test_sweep_label_names_what_was_swept(job, label):
    jobs = [job, ["seed=9", "strategy.world_size=9", "training.epochs=2"]]
    assert sweep_label(job, shared_overrides(jobs)) == label


@pytest.mark.unit
def test_sweep_of_one_job_has_no_label():
    assert sweep_label(["seed=1"], ["seed=1"]) == ""


@pytest.mark.parametrize("sweep", [False, True])
def test_runs_that_start_in_the_same_second_have_their_own_directories(sweep, train, work_folder):
    """Directories are named by the second. Here the configuration sets a fixed name."""
    (work_folder / "conf/experiment").mkdir(parents=True)
    (work_folder / "conf/experiment/now.yaml").write_text(
        "# @package _global_\nhydra:\n  run:\n    dir: runs/now\n  sweep:\n    dir: runs/now\n"
    )
    sweep_arguments = ["-m", "seed=1,2", NO_REPORT] if sweep else []
    arguments = ["--config-dir", "conf", *sweep_arguments, "experiment=now", *ONE_EPOCH]
    with ThreadPoolExecutor(2) as pool:
        results = [pool.submit(train, *arguments) for _ in range(2)]
    assert [result.result().returncode for result in results] == [0, 0]
    assert sorted(path.name for path in (work_folder / "runs").iterdir()) == ["now", "now_1"]
    records = [read_record(path.parent) for path in work_folder.rglob("run.json")]
    assert [record["status"] for record in records] == ["completed"] * (4 if sweep else 2)


# Commands that don't train.


@pytest.mark.unit
def test_version_is_that_of_the_package(call):
    assert call("--version").stdout == f"laptime {version('laptime')}\n"


def test_info_shows_where_each_value_comes_from(call, work_folder):
    ended = call("--info", "all", "model=cnn")
    assert ended.returncode == 0, ended.stderr
    shown = ended.stdout
    assert "Config search path" in shown and "Defaults Tree" in shown and "Defaults List" in shown
    assert config_dir().as_posix() in shown
    assert "model/cnn" in shown and "channels" in shown
    assert list(work_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("mod", {"model=", "model."}),
        ("model=m", {"model=mlp"}),
        ("logger=", {"logger=csv", "logger=mlflow", "logger=none", "logger=tensorboard", "logger=wandb"}),
        ("training.ep", {"training.epochs="}),
    ],
)
def test_the_shell_completes_groups_options_and_keys(words, completed, train, work_folder):
    """As bash does: COMP_LINE is the line, COMP_POINT the position of the cursor."""
    line = f"python train.py {words}"
    ended = train("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line)))
    assert ended.returncode == 0, ended.stderr
    assert set(ended.stdout.split()) == completed
    assert list(work_folder.iterdir()) == []
