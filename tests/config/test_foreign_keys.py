"""Keys of Lightning, lightning-hydra-template and PyTorch scripts are answered with Laptime's keys."""

import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import laptime
from laptime.config import foreign_answers
from laptime.config.compose import compose, hydra_session, resolve, without_hydra
from laptime.config.explain import keys_by_group
from laptime.config.foreign_answers import ROOT_KEYS, answer, answer_option
from laptime.config.foreign_keys import FOREIGN_KEYS, FOREIGN_OPTIONS, table
from laptime.config.overrides import parse
from laptime.config.quoting import quote_for_hydra
from laptime.errors import UserError
from laptime.evaluation.command_line import composed as composed_trained_run
from laptime.runner import fresh_processes
from laptime.suggest import closest, listed
from laptime.training.open_groups import check_open_groups


def refusal(*overrides: str) -> str:
    """What a run with these overrides is refused with."""
    with hydra_session() as hydra, pytest.raises(UserError) as caught:
        check_open_groups(resolve(without_hydra(compose(hydra, overrides))))
    return str(caught.value)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("override", "replacement"),
    {
        "trainer.max_epochs=3": "training.epochs=3",
        "epochs=2": "training.epochs=2",
        "training.max_epochs=2": "training.epochs=2",
        "lr=0.1": "optimizer.lr=0.1",
        "model.optimizer.lr=0.1": "optimizer.lr=0.1",
        "optimizer.learning_rate=0.1": "optimizer.lr=0.1",
        "model.net.dropout=0.1": "model.dropout=0.1",
        "batch_size=32": "training.batch_size=32",
        "data.batch_size=32": "training.batch_size=32",
        "data=mnist": "dataset=mnist",
        "datamodule=mnist": "dataset=mnist",
        "data.limit=100": "dataset.limit=100",
        "trainer.devices=2": "strategy.world_size=2",
        "trainer.devices=-1": "strategy.world_size=auto",
        "trainer.accelerator=gpu": "device=cuda",
        "trainer.precision='bf16-mixed'": "training.precision=bf16-mixed",
        "trainer.precision=32": "training.precision=32-true",
        "trainer.strategy=ddp": "strategy=ddp",
        "trainer=gpu": "device=cuda",
        "trainer.logger=False": "logger=none",
        "trainer.enable_checkpointing=false": "callbacks.checkpoint=null",
        "trainer.gradient_clip_val=1.0": "training.gradient_clip_norm=1.0",
        "trainer.benchmark=true": "training.cudnn_benchmark=true",
        "trainer.max_time=00:01:00:00": "training.time_limit_s=...",
        "trainer.limit_train_batches=10": "dataset.limit=...",
        "ckpt_path=a/last.ckpt": "training.checkpoint=a/last.ckpt",
        "optim=adam": "optimizer=adam",
        "hparams_search=mnist_optuna": "search=...",
        "trainer.devices=[0,1]": "strategy.world_size=2",
        "num_gpus=0": "device=cpu",
        "resume=true": "training.checkpoint=latest",
        "lr_scheduler.type=cosine": "scheduler=cosine",
        "optimizer.name=sgd": "optimizer=sgd",
        "trainer.logger=csv": "logger=csv",
        "trainer.max_epochs=": "training.epochs=...",
        "momentum=0.9": "optimizer=sgd optimizer.momentum=0.9",
        "warmup_steps=100": "scheduler=cosine_warmup scheduler.warmup_fraction=...",
        "warmup_ratio=0.1": "scheduler=cosine_warmup scheduler.warmup_fraction=0.1",
        "use_amp=1": "training.precision=16-mixed",
        "bf16=1": "training.precision=bf16-mixed",
        "lr=0.1,0.01": "optimizer.lr=0.1,0.01",
        "trainer.precision=16,32": "training.precision=16-mixed,32-true",
        "lr=range(1,3)": "'optimizer.lr=range(1,3)'",
        "trainer.devices=0,1": "strategy.world_size=...",
        "debug=default": "experiment=quick",
        "seed_everything=7": "seed=7",
        "weight_decay=0.1": "optimizer.weight_decay=0.1",
        "amp=true": "training.precision=16-mixed",
    }.items(),
)  # fmt: skip
def test_another_tools_key_is_answered_with_a_line_to_copy(override, replacement, monkeypatch):
    monkeypatch.setattr(foreign_answers, "_refusal", lambda *arguments: None)  # it composes
    key, _, value = override.partition("=")
    message = answer(override, key, value, ROOT_KEYS)
    assert (
        message is not None
        and message.startswith(f"{override}: ")
        and message.removesuffix(".").endswith(f" Type {replacement.removesuffix('.')}")
    )


@pytest.mark.parametrize(
    ("override", "replacement"),
    {
        "trainer.max_epochs=3": "training.epochs=3",
        "+trainer.max_epochs=3": "training.epochs=3",
        "++trainer={max_epochs: 3}": "training.epochs=3",
        "data=mnist": "dataset=mnist",
        "data@other=mnist": "dataset=mnist",
        "model.optimizer.lr=0.1": "optimizer.lr=0.1",
        "+model.optimizer.lr=0.1": "optimizer.lr=0.1",
        "optimizer.learning_rate=0.1": "optimizer.lr=0.1",
        "fit": "Leave it out.",
        "~trainer.max_epochs": "training.epochs. There is nothing to delete",
    }.items(),
)
def test_however_it_is_typed(override, replacement):
    message = refusal(override)
    assert replacement in message and "\n" not in message


@pytest.mark.unit
@pytest.mark.parametrize(
    ("override", "words"),
    {
        "trainer.min_steps=100": "training.max_steps",
        "trainer.num_nodes=2": "torchrun's option --nnodes",
        "trainer.check_val_every_n_epoch=2": "dataset.val_fraction=0",
        "trainer.deterministic=true": "seed",
        "trainer.callbacks=[a]": "+callbacks.NAME._target_",
        "trainer.accumulate_grad_batches=4": "multiply training.batch_size",
        "trainer.nothing_like_it=4": "groups training, strategy, device",
        "paths.root_dir=/tmp": "Leave it out",
    }.items(),
)
def test_where_the_meaning_differs_the_answer_says_how(override, words):
    key, _, value = override.partition("=")
    assert words in str(answer(override, key, value, ROOT_KEYS))


@pytest.mark.parametrize(
    ("override", "suggestion"),
    {
        "training.epoch=3": "training.epochs",
        "+training.epoch=3": "training.epochs",
        "modle=cnn": "model",
        "optimizr.lr=1": "optimizer.lr",
        "callbacks.chekpoint.save_best=false": "callbacks.checkpoint.save_best",
        "threads_per_rank=3": "strategy.threads_per_rank",
        "batch_sise=3": "training.batch_size",
        "training.dropout=0.1": "model.dropout",
        "+model.droput=0.1": "model.dropout",
        "hydra.lancher=joblib": "hydra.launcher",
        "model=cn": "model=cnn",
        "dataset=mnits": "dataset=mnist",
        "logger=[csv,wanb]": "logger=wandb",
        "hydra/launcher=jobli": "hydra/launcher=joblib",
    }.items(),
)
def test_a_mistyped_name_is_answered_with_the_closest_one(override, suggestion):
    assert f"Did you mean {suggestion}?" in refusal(override)


def test_where_nothing_is_close_the_known_names_are_listed():
    message = refusal("training.xyzzy=3")
    assert "Did you mean" not in message and "Known keys of training: epochs, max_steps" in message


@pytest.mark.unit
def test_closest_ignores_case_and_long_lists_are_cut():
    assert closest("ADAMW", ["adam", "adamw"]) == "adamw" and closest("xyz", ["adam"]) is None
    assert listed(map(str, range(33))).endswith("28, 29 and 3 more")


@pytest.fixture
def nothing_preloaded(monkeypatch):
    monkeypatch.setattr(fresh_processes, "preload", lambda: None)


@pytest.mark.parametrize(
    ("arguments", "replacement"),
    [
        (["trainer.max_epochs=3"], "training.epochs=3"),
        (["-m", "+trainer.max_epochs=3,4", "seed=1,2"], "Type training.epochs=3,4."),
        (["-m", "data=mnist,cifar10"], "data=mnist,cifar10: Laptime calls it dataset. Type dataset=mnist,cifar10."),
        (["-m", "device=gpu,cpu"], "Type device=cuda,cpu."),
        (["lr=0.1,0.01"], "Type optimizer.lr=0.1,0.01."),
        (["-m", "seed=1,2", "output_dir=x"], "Type hydra.sweep.dir=x."),
        (["output_dir=x"], "Type hydra.run.dir=x."),
        (["--epochs", "2"], "training.epochs=2"),
        (["model=cnn", "--lr", "0.1"], "optimizer.lr=0.1"),
        (["--batch-size=32", "-m"], "training.batch_size=32"),
        (["-lr", "0.1"], "optimizer.lr=0.1"),
        (["--seed", "3"], "seed=3"),
        (["--multirn"], "--multirun"),
        (["--cfg", "job", "lr=1"], "optimizer.lr=1"),
    ],
)
def test_the_command_ends_with_2_and_writes_nothing(arguments, replacement, work_folder, call, nothing_preloaded):
    ended = call(*arguments)
    assert ended.returncode == 2 and replacement in ended.stderr and len(ended.stderr.splitlines()) == 1
    assert list(work_folder.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--config-dir", ""],
        ["train", "-m", "-cd", ""],
        ["train", "-cd", ".", "--config-dir=."],
        ["tune", "lr", "--config-dir="],
        ["evaluate", "run=latest", "--config-dir", ""],
        ["export", "run=latest", "--config-dir=.", "--config-dir", "."],
    ],
)
def test_an_empty_or_a_second_config_dir_is_refused(arguments, work_folder, call, nothing_preloaded):
    ended = call(*arguments)
    assert ended.returncode == 2 and ended.stderr.startswith("error: --config-dir: ")
    assert len(ended.stderr.splitlines()) == 1


def test_python_and_tune_give_the_same_answer(work_folder, capfd):
    from laptime.tune.__main__ import main as tune

    with pytest.raises(UserError, match=r"Type training\.epochs=3"):
        laptime.run(["trainer.max_epochs=3"])
    assert tune(["batch_size", "trainer.max_epochs=3"]) == 2
    assert "Type training.epochs=3" in capfd.readouterr().err
    assert list(work_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "words"),
    {
        "ckpt_path=a": "Type checkpoint=a",
        "trainer.accelerator=gpu": "Type device=cuda",
        "trainer.max_epochs=3": "unknown key",  # evaluate trains nothing
        "data.limit=100": "unknown key",  # it takes the data of the run
        "data=mnist": "unknown key",
        "data.root=/tmp": "Type dataset.root=/tmp",
        "resume=true": "checkpoint=true: must be a path.",
        "device=gpu": "Laptime calls it cuda.",
        "trainer.precision=64": "precision=64: must be one of",
    }.items(),
)
def test_evaluate_answers_with_its_own_keys(override, words):
    with pytest.raises(UserError, match=words):
        composed_trained_run("evaluate", ["run=latest", override])


@pytest.mark.parametrize(
    ("content", "words"),
    {
        "trainer:\n  max_epochs: 3\n": "experiment/theirs.yaml: trainer.max_epochs=3: .* Use training.epochs=3",
        "training:\n  max_epochs: 3\n": "experiment/theirs.yaml: training.max_epochs=3: .* Use training.epochs=3",
        "defaults:\n  - override /data: mnist\n": "experiment/theirs.yaml: data: Laptime calls it dataset",
        "defaults:\n  - /data: mnist\n": "data=mnist: Laptime calls it dataset",
    }.items(),
)
def test_a_key_in_an_experiment_file_is_answered_with_the_name_of_the_file(content, words, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/theirs.yaml").write_text(f"# @package _global_\n{content}")
    with hydra_session(str(tmp_path)) as hydra, pytest.raises(UserError, match=words):
        compose(hydra, ["experiment=theirs"])


def test_names_of_the_users_own_are_not_caught(tmp_path):
    for name, content in {
        "trainer/long.yaml": "# @package training\nepochs: 70\n",
        "data/small.yaml": "# @package dataset\nlimit: 100\n",
        "model/net.yaml": "_target_: my_net.Net\nnet: {lr: 1, trainer: {max_epochs: 3}}\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text(content)
    with hydra_session(str(tmp_path)) as hydra:
        overrides = ["+trainer=long", "+data=small", "model=net", "model.net.lr=2"]
        config = resolve(without_hydra(compose(hydra, overrides)))
    assert config.training.epochs == 70 and config.dataset["limit"] == 100 and config.model["net"]["lr"] == 2


def advised_lines(values: Sequence[str] = ()) -> list[str]:
    """The lines that the table advises to type for the values in it, and for further ones."""
    lines = []
    for row in FOREIGN_KEYS:
        for name in row.names.split()[: 1 if values else None]:  # the names of a row differ in nothing else
            for value in (*row.values, *values):
                key = name.replace("*", "epochs")
                message = answer(f"{key}={value}", key, value, ROOT_KEYS) or ""
                _, verb, line = message.removesuffix(".").rpartition(" Type ")
                lines += [line] if verb and not message.endswith("...") else []
    return list(dict.fromkeys(lines))


def test_every_row_leads_to_keys_and_values_that_are_accepted(monkeypatch):
    monkeypatch.setattr(foreign_answers, "_refusal", lambda *arguments: None)  # the table itself must be right
    by_key: dict[str, list[str]] = {}
    for line in advised_lines():
        for override in shlex.split(line):
            by_key.setdefault(override.partition("=")[0], []).append(override)
    with hydra_session() as hydra:
        cfg = compose(hydra, ["optimizer=sgd", "scheduler=cosine_warmup"])
        for row in FOREIGN_KEYS:
            assert row.key or row.note, row.names
            in_training = row.key.partition(".")[0] in {*keys_by_group(cfg)[""], "hydra"}
            assert in_training or row.key in ("", "search", "checkpoint", "precision", "compile"), row.names
            if row.key and not row.key.endswith("*") and in_training:
                parent, _, name = row.key.rpartition(".")
                assert name in (OmegaConf.select(cfg, parent) if parent else cfg), row.key
        for number in range(max(map(len, by_key.values()))):  # one value of each key together
            overrides = [lines[min(number, len(lines) - 1)] for lines in by_key.values()]
            resolve(without_hydra(compose(hydra, overrides)))
        for group, names in FOREIGN_OPTIONS.items():
            assert set(names.values()) <= set(hydra.config_loader.get_group_options(group))


@pytest.mark.soak
def test_every_advised_line_is_accepted_as_it_is_printed():
    lines = advised_lines(["", "-1", "1", "0.5", "true", "null", "mnist", "[0,1]", "1,2", "a b"])
    assert len(lines) > 80
    with hydra_session() as hydra:
        for line in lines:
            for value in itertools.product(*map(values_of, quote_for_hydra(shlex.split(line)))):
                resolve(without_hydra(compose(hydra, value)))


def values_of(override: str) -> list[str]:
    key, _, value = override.partition("=")
    return [f"{key}={one}" for one in value.split(",")] if parse(override).is_swept else [override]


@pytest.mark.parametrize(
    ("override", "words"),
    {
        "trainer.max_epochs=-1": "training.epochs=-1: must be at least 1.",
        "seed_everything=true": "seed=true: must be a whole number.",
        "trainer.precision=64": "training.precision=64: must be one of 32-true, bf16-mixed, 16-mixed.",
        "trainer.accelerator=tpu": "Known options of device: accelerator, auto, cpu,",
        "data=foo": "dataset=foo: no such option.",
        "lr=abc": "optimizer.lr=abc: must be a number.",
        "lr=0.1,abc": "optimizer.lr=abc: must be a number.",
        "output_dir=true": "hydra.run.dir=true: must be a path.",
        "trainer.benchmark=maybe": "training.cudnn_benchmark=maybe: must be true or false.",
        "data.foo=1": "Laptime's group is dataset. dataset.foo=1: unknown key.",
    }.items(),
)
def test_a_value_that_would_be_refused_is_not_advised(override, words):
    key, _, value = override.partition("=")
    message = str(answer(override, key, value, ROOT_KEYS))
    assert words in message and "Type" not in message


@pytest.mark.parametrize(
    ("override", "words"),
    {
        "device=gpu": "device=gpu: no such option. Laptime calls it cuda. Type device=cuda.",
        "optimizer=AdamW": "Type optimizer=adamw.",
        "logger=tb": "Type logger=tensorboard.",
        "logger=[csv,tb]": "Type 'logger=[csv,tensorboard]'.",
        "dataset=Fashion-MNIST": "Type dataset=fashion_mnist.",
    }.items(),
)
def test_another_tools_option_is_answered_with_laptimes(override, words):
    assert words in refusal(override)


@pytest.mark.unit
def test_an_option_is_only_answered_if_all_values_are_known():
    assert answer_option("device=gpu,cpu", "device", "gpu,cpu", ["cpu", "cuda"]) == (
        "device=gpu,cpu: no such option gpu. Laptime calls it cuda. Type device=cuda,cpu."
    )
    assert answer_option("device=gpu,tpu", "device", "gpu,tpu", ["cpu", "cuda"]) is None


@pytest.mark.parametrize("override", ["name=foo", "xyz=1", "validate=true"])
def test_a_name_that_is_like_none_has_no_suggestion(override):
    assert "Did you mean" not in refusal(override)


@pytest.mark.unit
def test_the_table_is_in_the_documents():
    assert "| `trainer.benchmark`, `benchmark`, `cudnn_benchmark` | `training.cudnn_benchmark` |  |" in table()
    document = Path(__file__).parents[2].joinpath("docs/configuration.md").read_text()
    assert table() in document and "--epochs 2" in document


@pytest.mark.unit
def test_a_name_with_another_meaning_in_its_group_is_not_answered():
    assert answer("scheduler.patience=3", "scheduler.patience", "3", ROOT_KEYS) is None
    assert answer("optimizer.momentum=3", "optimizer.momentum", "3", ROOT_KEYS) is None
    assert answer("a.b.lr=3", "a.b.lr", "3", ROOT_KEYS) is None
