"""Mistakes in what is typed: exit code 2, at most two lines, no traceback, nothing left behind."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from laptime.cli import main
from laptime.record import read_record
from laptime.run_dir import RunDir
from laptime.sweep import sweep_label

MISTAKES = {
    "dataset=mnits": ["dataset=mnits", "cifar10, fashion_mnist, mnist, synthetic"],
    "device=gpu": ["device=gpu", "auto, cpu, cuda, mps, xpu"],
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
    "device=cuda device.fallback=error": ["device=cuda", "absent"],
    "device.fallback=gpu": ["device.fallback=gpu", "cpu, error"],
    "dataset.val_fraction=0 training.early_stopping_patience=2": ["early_stopping_patience", "dataset.val_fraction=0"],
    "dataset.val_fraction=0 scheduler=plateau": ["plateau", "dataset.val_fraction=0"],
    "dataset.val_fraction=0 measure.target_accuracy=0.9": ["target_accuracy", "dataset.val_fraction=0"],
    "training.accumulate_grad_batches=3": ["accumulate_grad_batches=3", "batch_size=64"],
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
    "model=null": ["model=null", "one of its options"],
    "+experiment=quick": ["+experiment=quick", "Leave out the +"],
    "model._target_=builtins.dict security.allowed_targets=[builtins]": ["model", "no Module"],
    "model._target_=torch.nn.Flatten ~model.hidden_sizes ~model.dropout": ["Flatten", "(2, 784)", "(2, 10)"],
    "optimizer._target_=torch.optim.LBFGS ~optimizer.fused ~optimizer.weight_decay": ["LBFGS"],
    "+callbacks.odd={_target_:builtins.dict} security.allowed_targets=[builtins.dict]": [
        "callbacks.odd",
        "no Callback",
    ],
    "+callbacks.bar={_target_:pytorch_lightning.callbacks.RichProgressBar}": ["callbacks"],
    "training.checkpoint=~nosuchuser/x": ["training.checkpoint=~nosuchuser/x"],
    "-m seed=range(0,1000000000)": ["seed=range(0,1000000000)", "1,000,000,000 runs", "10,000"],
    "-m seed=range(0,1000) training.epochs=range(1,50)": ["seed=range(0,1000)", "49,000 runs"],
    "-m seed=1,1": ["seed=1", "the same run twice"],
    "-m seed=interval(1,3)": ["seed=interval(1,3)", "sweeper"],
    "~seed": ["~seed"],
    "~optimized_metric": ["~optimized_metric"],
    "hydra.mode=MULTIRUN": ["hydra.mode", "-m"],
    "strategy.threads_per_rank=100000": ["strategy.threads_per_rank=100000", "1024"],
    "training.eval_batch_size=1000000000000000000000": ["training.eval_batch_size", "at most"],
    "run_dir=here": ["run_dir=here", "hydra.run.dir"],
    "dataset=synthetic dataset.shape=[3,100000,100000]": ["dataset=synthetic", "GB are free", "mapped"],
    "--cfg job training.epochs=0": ["training.epochs=0", "at least 1"],
    "--help training.epocs=3": ["training.epocs=3", "training.epochs"],
    "--info config training.epocs=3": ["training.epocs=3", "training.epochs"],
    "-m hydra.verbose=true,false": ["hydra.verbose=true,false", "one value"],
    "-m hydra/launcher=basic,joblib": ["hydra/launcher=basic,joblib", "one value"],
}


@pytest.mark.parametrize("typed", MISTAKES)
def test_mistake_is_named_in_two_lines_and_leaves_nothing(typed, capfd, work_folder):
    with pytest.raises(SystemExit) as end:
        main(typed.split())
    captured = capfd.readouterr()
    assert end.value.code == 2
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) <= 2, captured.err
    assert captured.err.startswith("error: ")
    for words in MISTAKES[typed]:
        assert words in captured.err
    assert list(work_folder.iterdir()) == []


@pytest.mark.parametrize(
    "typed",
    [
        "training.epochs=1",
        "++training.epochs=1",
        "dataset.val_fraction=0.99 training.batch_size=16",
        "training.batch_size=1600",
        "measure.warmup_epochs=1 training.epochs=2",
        "model.dropout=0",
        "device=cuda",
        "training.accumulate_grad_batches=2",
        "training.precision=bf16-mixed",
        "dataset.val_fraction=0 scheduler=step",
    ],
)
def test_accepted_neighbour_trains(typed, the_run):
    arguments = ["dataset.limit=2000", "logger=none", *typed.split()]
    if "epochs" not in typed:
        arguments.append("training.epochs=1")
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert not end.value.code
    assert the_run()[1]["status"] == "completed"


def test_full_error_on_request(monkeypatch):
    from laptime.errors import UserError

    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError):
        main(["dataset=mnits"])


def test_mistake_in_the_real_command(train, work_folder):
    done = train("dataset=mnits")
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert list(work_folder.iterdir()) == []


def test_mistake_in_one_job_of_a_sweep_is_found_before_the_first_starts(capfd, work_folder):
    with pytest.raises(SystemExit) as end:
        main(["-m", "training.epochs=1,0", "dataset.limit=2000"])
    assert end.value.code == 2
    assert "training.epochs=0" in capfd.readouterr().err
    assert list(work_folder.iterdir()) == []


def test_a_run_is_never_written_over(capfd, work_folder):
    arguments = ["dataset.limit=2000", "training.epochs=1", "logger=none", "hydra.run.dir=mine"]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert not end.value.code
    before = (work_folder / "mine" / "run.json").read_bytes()
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "hydra.run.dir=mine" in capfd.readouterr().err
    assert (work_folder / "mine" / "run.json").read_bytes() == before


def test_a_users_own_files_survive_a_mistake(work_folder):
    (work_folder / "mine").mkdir()
    (work_folder / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(SystemExit) as end:
        main(["hydra.run.dir=mine", "model.dropout=2"])
    assert end.value.code == 2
    assert [path.name for path in (work_folder / "mine").iterdir()] == ["notes.txt"]


def test_runs_that_want_the_same_directory_get_their_own(work_folder):
    first, second, third = (RunDir("outputs/12-00-00", may_move=True).path for _ in range(3))
    assert [path.name for path in (first, second, third)] == ["12-00-00", "12-00-00_1", "12-00-00_2"]


def test_odd_names_of_directories_are_taken_as_they_are(work_folder):
    with pytest.raises(SystemExit) as end:
        main(["dataset.limit=2000", "training.epochs=1", "hydra.run.dir='out of, (the) {ordinary}=é'"])
    assert not end.value.code
    assert (work_folder / "out of, (the) {ordinary}=é" / "run.json").is_file()


def test_sweep_directory_belongs_to_one_sweep(capfd, work_folder):
    sweep = ["-m", "seed=1,2", "dataset.limit=1000", "training.epochs=1", "logger=none", "hydra.sweep.dir=mine"]
    with pytest.raises(SystemExit) as end:
        main(sweep)
    assert not end.value.code
    assert "TensorBoard" not in capfd.readouterr().out, "logger=none leaves nothing to look at"
    before = [path.read_bytes() for path in sorted(work_folder.rglob("run.json"))]
    with pytest.raises(SystemExit) as end:
        main(sweep)
    assert end.value.code == 2
    assert "hydra.sweep.dir=mine" in capfd.readouterr().err
    assert [path.read_bytes() for path in sorted(work_folder.rglob("run.json"))] == before


def test_mistake_that_shows_only_in_building_fails_its_job_alone(capfd, work_folder):
    with pytest.raises(SystemExit) as end:
        main(["-m", "training.batch_size=32,9999", "dataset.limit=1000", "training.epochs=1", "hydra.sweep.dir=mine"])
    assert end.value.code == 2
    errors = capfd.readouterr().err
    assert "1 of 2 runs of the sweep failed" in errors and "training.batch_size=9999" in errors
    assert read_record(work_folder / "mine" / "0")["status"] == "completed"
    assert read_record(work_folder / "mine" / "1")["status"] == "failed"


def test_own_model_beside_own_configuration(work_folder, the_run):
    conf = work_folder / "own"
    (conf / "model").mkdir(parents=True)
    (conf / "model" / "own_net.yaml").write_text("_target_: own_net_module.OwnNet\nwidth: 8\n")
    (conf / "own_net_module.py").write_text(
        "import math\nfrom torch import nn\n\n\nclass OwnNet(nn.Sequential):\n"
        "    def __init__(self, input_shape, num_classes, width: int):\n"
        "        first = nn.Linear(math.prod(input_shape), width)\n"
        "        super().__init__(nn.Flatten(), first, nn.Linear(width, num_classes))\n"
    )
    with pytest.raises(SystemExit) as end:
        main(
            [
                "--config-dir",
                "own",
                "model=own_net",
                "security.allowed_targets=[own_net_module]",
                "dataset.limit=1000",
                "training.epochs=1",
                "logger=none",
            ]
        )
    assert not end.value.code
    record = the_run()[1]
    assert record["model"] == record["model"] | {"name": "ownnet", "num_parameters": 784 * 8 + 8 + 80 + 10}


@pytest.mark.parametrize(
    ("job", "label"),
    [
        (["seed=1", "strategy.world_size=2", "training.epochs=2"], "seed=1 ws=2"),
        (["+model.width=a/b", "training.epochs=2"], "width=a_b"),
    ],
)
def test_sweep_label_names_what_was_swept(job, label):
    assert sweep_label(job, [job, ["seed=9", "strategy.world_size=9", "training.epochs=2"]]) == label


def test_sweep_of_one_job_has_no_label():
    assert sweep_label(["seed=1"], [["seed=1"]]) == ""


@pytest.mark.parametrize("sweep", [False, True])
def test_two_that_start_in_the_same_second_have_directories_of_their_own(sweep, train, work_folder):
    """Directories are named by the second; here by a name that is always the same."""
    (work_folder / "conf/experiment").mkdir(parents=True)
    (work_folder / "conf/experiment/now.yaml").write_text(
        "# @package _global_\nhydra:\n  run:\n    dir: runs/now\n  sweep:\n    dir: runs/now\n"
    )
    quick = ["dataset.limit=500", "training.epochs=1", "logger=none", "measure.breakdown=false", "measure.peak=false"]
    typed = ["--config-dir", "conf", *(["-m", "seed=1,2"] if sweep else []), "experiment=now", *quick]
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(train, *typed) for _ in range(2)]
    assert [each.result().returncode for each in both] == [0, 0]
    assert sorted(path.name for path in (work_folder / "runs").iterdir()) == ["now", "now_1"]
    records = [read_record(path.parent) for path in work_folder.rglob("run.json")]
    assert [record["status"] for record in records] == ["completed"] * (4 if sweep else 2)
