"""Whatever is typed: it composes and builds, or it is refused in two lines that name it. Hypothesis makes it up."""

import re
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laptime import targets, training
from laptime.cli import check, main
from laptime.compose import compose, hydra_session
from laptime.errors import UserError, printable

pytestmark = pytest.mark.slow

# Keys with values that are right, whatever else is set.
RIGHT = {
    "training.epochs": ["2", "7", "1000000000"],
    "training.batch_size": ["1", "64", "4096"],
    "training.steps_per_execution": ["1", "64"],
    "training.precision": ["32-true"],
    "training.matmul_precision": ["highest", "high", "medium"],
    "training.early_stopping_patience": ["null", "3"],
    "training.gradient_clip_norm": ["null", "0.5", "1"],
    "training.time_limit_s": ["null", "1e9", "60"],
    "training.label_smoothing": ["0", "0.1"],
    "training.mixup_alpha": ["0", "0.2"],
    "training.ema_decay": ["null", "0.99"],
    "training.compile": ["true", "no", "1", "off"],
    "strategy.world_size": ["1", "2", "auto"],
    "strategy.threads_per_rank": ["auto", "1", "1024"],
    "strategy.timeout_s": ["1", "1e5"],
    "strategy.comm_hook": ["none", "fp16", "powersgd"],
    "strategy.master_port": ["0", "65535"],
    "measure.warmup_epochs": ["auto", "0", "1"],
    "measure.breakdown": ["true", "false"],
    "measure.target_accuracy": ["null", "0.99", "1"],
    "device": ["auto", "cpu", "mps", "cuda"],
    "device.fallback": ["cpu"],
    "dataset": ["mnist", "fashion_mnist", "synthetic"],
    "dataset.limit": ["null", "5000"],
    "dataset.val_fraction": ["0.1", "0.5"],
    "dataset.root": ["null", "data", "'with space'", "'größe'"],
    "model": ["mlp", "cnn"],
    "model.dropout": ["0", "0.25"],
    "optimizer": ["adam", "adamw", "sgd"],
    "optimizer.lr": ["1e-3", "1", "0.5"],
    "scheduler": ["none", "step", "cosine", "cosine_warmup", "one_cycle", "plateau"],
    "logger": ["none", "csv", "tensorboard"],
    "profiler": ["none", "simple"],
    "seed": ["0", "4294967295"],
    "optimized_metric": ["null", "epoch_time_s"],
    "sweep.on_failure": ["stop", "continue"],
    "callbacks.progress_bar": ["null"],
    "security.allowed_targets": ["[]", "[my_net]"],
    "hydra.sweep.dir": ["somewhere", "a/b"],
}  # fmt: skip
UNUSUAL = [
    "", "null", "true", "nan", "-inf", "inf", "-1", "0", "1e400", "99999999999999999999999", "0.1.2", "1_000", "0x10",
    "???", "${seed}", "${nowhere}", "${oc.env:NOWHERE}", "${training}", "${", "$", "'", '"', "[", "]",
    "[1,2", "[1,2]", "[]", "{}", "{a:1}", "{a:{b:[c]}}", "[[1],[2,[3]]]", "a=b", "a b", "a,b", "=", "==", "~", "+", "@",
    "\\", "/", "..", "ü", "数", "\u200b", "\u202e", "\x00", "\x1b[31m", "\n", "a\nb", "\t", "😀", "a" * 5000, "1" * 400,
    "range(1,3)", "choice(a,b)", "interval(0,1)", "glob(*)", "shuffle(1,2)", "sort(2,1)", "int(3)", "str(3)",
    "os.system", "torch.hub.load", "builtins.eval", "laptime.models.mlp.MLP", "torch.nn.Linear", "torch.optim.LBFGS",
]  # fmt: skip
ODD_KEYS = [
    "", "seeds", "training.epoch", "training", "training.", ".epochs", "training..epochs", "training.epochs.x", "model",
    "model._target_", "model.hidden_sizes", "model.channels", "model.input_shape", "dataset.shape", "dataset.num_train",
    "optimizer._target_", "optimizer.betas", "optimizer.params", "scheduler._target_", "callbacks", "callbacks.x",
    "callbacks.x._target_", "logger.x", "logger.tensorboard", "profiler._target_", "hydra", "hydra.run.dir",
    "hydra.sweep.subdir", "hydra.job.num", "hydra.nothing", "hydra/launcher", "hydra/sweeper", "experiment", "defaults",
    "schema", "run_dir", "run_label", "training@here", "model@other", "_target_", "größe", "a b", "1",
    "sweep.resume", "security", "strategy", "measure.sample_interval_s", "strategy.bucket_cap_mb", "dataset.mean",
    "dataset.num_workers",
]  # fmt: skip

right = st.sampled_from(sorted(RIGHT)).flatmap(
    lambda key: st.sampled_from(RIGHT[key]).map(lambda value: f"{key}={value}")
)
anything = st.one_of(
    st.sampled_from(UNUSUAL),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=20),
    st.lists(st.integers(-3, 10**12).map(str), max_size=4).map(lambda items: f"[{','.join(items)}]"),
)
odd = st.builds(
    lambda prefix, key, equals, value: f"{prefix}{key}{equals}{value}",
    st.sampled_from(["", "", "", "", "+", "++", "~"]),
    st.one_of(st.sampled_from(sorted(RIGHT)), st.sampled_from(ODD_KEYS), st.text(max_size=10)),
    st.sampled_from(["=", "=", "=", "=", "=", ""]),
    anything,
)
typed = st.one_of(
    st.lists(right, min_size=1, max_size=5, unique_by=lambda one: one.partition("=")[0]),
    st.builds(
        lambda good, bad: [*good, bad], st.lists(right, max_size=3, unique_by=lambda one: one.partition("=")[0]), odd
    ),
)
# argparse takes these for flags of its own; a sweep's end is another test's.
FLAGS = re.compile(r"^-")

seen: Counter[str] = Counter()
# No case needs longer, on whatever machine: what is looked for is a case that never ends.
BOUND_S = 60.0


def tree(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


@settings(
    max_examples=1000, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(typed=typed)
def test_it_composes_and_builds_or_is_refused_in_two_lines(typed, work_folder):
    typed = [each for each in typed if not FLAGS.match(each)]
    seen["overrides"] += len(typed)
    before, start = tree(work_folder), time.monotonic()
    try:
        config = composed_and_checked(typed)
    except UserError as error:
        message = str(error)
        assert 1 <= len(message.splitlines()) <= 2, message
        assert names_one_of(typed, message), (typed, message)
        seen["refused"] += 1
    else:
        seen["composed"] += 1
        try:
            build_all(config)
            seen["built"] += 1
        except UserError as error:  # what only building can tell
            assert len(str(error).splitlines()) <= 2, str(error)
            assert names_one_of(typed, str(error)), (typed, str(error))
    assert tree(work_folder) == before
    assert time.monotonic() - start < BOUND_S


def composed_and_checked(typed: list[str]) -> dict:
    """What `python train.py TYPED` would train."""
    with hydra_session() as hydra:
        return check(compose(hydra, typed), typed)


def build_all(config) -> None:
    """What a run builds from the open groups before it trains."""
    source = targets.build("dataset", config["dataset"])
    network = training.build_network(config["model"], source)
    optimizer = targets.build("optimizer", config["optimizer"], params=network.parameters())
    if config["scheduler"].get("_target_") is not None:
        targets.build("scheduler", config["scheduler"], optimizer=optimizer, num_steps_per_epoch=10)
    training._build_callbacks(config)
    for name, node in config["logger"].items():
        if node is not None:
            targets.build(f"logger.{name}", node)


def names_one_of(typed: list[str], message: str) -> bool:
    """Whether the message names one of the keys that were typed (its last part at least), or all that stood there."""
    for override in typed:
        key = (
            override.lstrip("+~")
            .partition("=")[0]
            .partition("@")[0]
            .rpartition(".")[2]
            .rpartition("/")[2]
            .strip("'\" ")
        )
        if any(printable(each)[:200] in message for each in (key, override)):
            return True
    return False


def test_enough_of_them_are_right():
    assert seen["composed"] + seen["refused"] == 1000
    assert seen["overrides"] >= 2000
    assert seen["built"] >= 300, seen


@pytest.mark.parametrize("number", range(20))
def test_the_command_says_the_same(number, work_folder, capfd):
    """A sample of the same cases through the command line itself: exit code 2, two lines, nothing written."""
    key = sorted(RIGHT)[number]
    for value in ("[[", "${nowhere}", "\u202e", "{a:1}"):
        with pytest.raises(SystemExit) as end:
            main(["-m", f"{key}={value}", "sweep.dry_run=true"])
        errors = capfd.readouterr().err.strip().splitlines()
        assert end.value.code in (0, 2)
        assert end.value.code == 0 or 1 <= len(errors) <= 2, errors
        assert list(work_folder.iterdir()) == []
