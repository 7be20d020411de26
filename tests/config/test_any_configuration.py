"""Whatever is typed: it composes and builds, or it is refused in two lines that name it. Hypothesis makes it up."""

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from laptime.cli import main
from laptime.config import targets
from laptime.config.compose import compose, hydra_session
from laptime.config.schema import Config
from laptime.errors import UserError
from laptime.runner import fresh_processes
from laptime.runner.check import check
from laptime.text import escape_control_chars
from laptime.training import build

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
mistaken = st.builds(
    lambda prefix, key, equals, value: f"{prefix}{key}{equals}{value}",
    st.sampled_from(["", "", "", "", "+", "++", "~"]),
    st.one_of(st.sampled_from(sorted(RIGHT)), st.sampled_from(ODD_KEYS), st.text(max_size=10)),
    st.sampled_from(["=", "=", "=", "=", "=", ""]),
    anything,
)
typed_overrides = st.one_of(
    st.lists(right, min_size=1, max_size=5, unique_by=lambda one: one.partition("=")[0]),
    st.builds(
        lambda good, bad: [*good, bad],
        st.lists(right, max_size=3, unique_by=lambda one: one.partition("=")[0]),
        mistaken,
    ),
)
# argparse takes these for flags of its own; a sweep's end is another test's.
FLAGS = re.compile(r"^-")


def tree(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


def look_at(max_examples: int, work_folder: Path) -> None:
    """What is typed composes and builds, or is refused in one or two lines that name it; nothing is written."""
    seen: Counter[str] = Counter()
    before = tree(work_folder)

    @settings(max_examples=max_examples, database=None)
    @given(overrides=typed_overrides)
    @example(overrides=["=\n"])  # what fresh cases of the soak have found
    @example(overrides=["\x1b"])
    @example(overrides=["\0="])
    @example(overrides=["run_dir=${nowhere}"])
    @example(overrides=["~runs_at_once"])
    @example(overrides=["+A="])
    @example(overrides=["~A="])
    @example(overrides=["+D=77459"])
    @example(overrides=["profiler._target_=laptime.models.mlp.MLP"])
    @example(overrides=["scheduler._target_=laptime.models.mlp.MLP"])
    def check_one(overrides: list[str]) -> None:
        overrides = [override for override in overrides if not FLAGS.match(override)]
        seen["overrides"] += len(overrides)
        try:
            config = composed_and_checked(overrides)
        except UserError as error:
            assert 1 <= len(str(error).splitlines()) <= 2, str(error)
            assert names_one_of(overrides, str(error)), (overrides, str(error))
            seen["refused"] += 1
        else:
            try:
                build_all(config)
                seen["built"] += 1
            except UserError as error:  # what only building can tell
                assert len(str(error).splitlines()) <= 2, str(error)
                assert names_one_of(overrides, str(error)), (overrides, str(error))
        assert tree(work_folder) == before

    check_one()
    assert seen["overrides"] >= 2 * max_examples
    assert seen["built"] >= 0.3 * max_examples and seen["refused"] >= 0.1 * max_examples, seen


@pytest.mark.soak
def test_it_composes_and_builds_or_is_refused_in_two_lines(work_folder):
    """The same cases in each run; other ones, and more of them, in the soak."""
    look_at(50, work_folder)


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_thousands_of_other_configurations_are_built_or_refused_in_two_lines(work_folder):
    look_at(2000, work_folder)


def composed_and_checked(overrides: list[str]) -> Config:
    """What `python train.py TYPED` would train."""
    with hydra_session() as hydra:
        return check(compose(hydra, overrides), overrides)


def build_all(config: Config) -> None:
    """What a run builds from the open groups before it trains."""
    source = targets.build("dataset", config.dataset)
    network = build.build_network(config.model, source)
    optimizer = targets.build("optimizer", config.optimizer, params=network.parameters())
    if config.scheduler.get("_target_") is not None:
        targets.build("scheduler", config.scheduler, optimizer=optimizer, num_steps_per_epoch=10)
    build.build_callbacks(config)
    for name, node in config.logger.items():
        if node is not None:
            targets.build(f"logger.{name}", node)


def names_one_of(overrides: list[str], message: str) -> bool:
    """Whether a message quotes an override that was typed, or names its key.

    The last part of a key is enough where it has more than one character and stands as a word of its own. A key of one
    character is named in quotes or with its equals sign. Signs and spaces before a key may be left out.
    """
    for override in overrides:
        begins = {f"'{escape_control_chars(override)}': "}
        begins |= {f"{escape_control_chars(text)}: " for text in (override, override.lstrip("+~ ")) if text}
        if message.startswith(tuple(begins)):
            return True
        key = override.lstrip("+~").partition("=")[0].partition("@")[0].strip("'\" ")
        last = re.split(r"[./]", key)[-1]
        short = (f"'{key}'", f"{key}=") if len(key) == 1 else ()
        texts = [re.escape(escape_control_chars(name)[:200]) for name in (override, key, last, *short) if len(name) > 1]
        if any(re.search(rf"(?<!\w){text}(?!\w)", message) for text in texts):
            return True
    return False


@pytest.mark.unit
def test_a_message_that_names_nothing_typed_is_found():
    message = "training.epochs=x: must be a whole number."
    assert names_one_of(["training.epochs=x"], message) and names_one_of(["seed=1", "epochs@here=x"], message)
    assert names_one_of([""], "'': has no key.") and names_one_of(["x"], "x: unknown key.")
    assert names_one_of(["+A="], "A=: unknown key.") and names_one_of(["~A="], "can't delete: 'A' does not exist.")
    for other in ("=x", "training.=x", "callbacks.x=1", "seed=1", "epoch=1", "", "~", "a=1"):
        assert not names_one_of([other], message), other


def typed_at_the_command_line(keys: list[str], values: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 or 2; for 2 one or two lines that name the key, and nothing on standard output."""
    for key in keys:
        for value in values:
            with pytest.raises(SystemExit) as end:
                main(["-m", f"{key}={value}", "sweep.dry_run=true"])
            written = capfd.readouterr()
            errors = written.err.strip().splitlines()
            assert end.value.code in (0, 2)
            if end.value.code == 2:
                assert 1 <= len(errors) <= 2 and errors[0].startswith("error: ") and written.out == "", errors
                assert names_one_of([f"{key}={value}"], written.err)
            assert list(Path().iterdir()) == []


def test_the_command_says_the_same(work_folder, capfd, monkeypatch):
    monkeypatch.setattr(fresh_processes, "preload", lambda: None)
    typed_at_the_command_line(sorted(RIGHT)[::4], ("[[", "${nowhere}"), capfd)


@pytest.mark.soak
@pytest.mark.parametrize("key", sorted(RIGHT))
def test_the_command_says_the_same_of_every_key(key, work_folder, capfd):
    typed_at_the_command_line([key], ("[[", "${nowhere}", "\u202e", "{a:1}"), capfd)
