"""What was typed as Hydra's grammar takes it: paths with any characters, values that aren't ASCII, no dashes."""

import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from tests.support.settings import NO_REPORT, TINY

from laptime.config.compose import compose, hydra_session
from laptime.config.quoting import quote_for_hydra
from laptime.errors import UserError
from laptime.evaluation.command_line import composed
from laptime.record.files import read_record
from laptime.sweeps.plan import plan_runs
from laptime.tune.__main__ import main as tune

ONE_EPOCH = [*TINY, "training.epochs=1"]


def values(override: str) -> list[object]:
    """What Hydra reads."""
    (parsed,) = OverridesParser.create().parse_overrides(quote_for_hydra([override]))
    return [str(value) for value in parsed.sweep_iterator()] if parsed.is_sweep_override() else [parsed.value()]


@pytest.mark.unit
@pytest.mark.parametrize(
    "path",
    ["runs/lr=0.1/last.ckpt", "~/x", "my runs/a b", "a [1]/b", "a(1)/b", "größe/例", "it's/b", 'a"b', "1e3", "a\\",
     "a#b", "a;b", "true", "${oc.env:PWD}/größe", "C:\\runs\\last.ckpt"],
)  # fmt: skip
@pytest.mark.parametrize("key", ["training.checkpoint", "dataset.root", "hydra.run.dir", "sweep.resume"])
def test_a_path_is_taken_as_it_is(key, path):
    assert values(f"{key}={path}") == [path]


@pytest.mark.unit
def test_values_are_quoted_only_where_the_grammar_asks_for_it():
    unchanged = ["seed=1,2", "model=cnn", "model.hidden_sizes=[1,2]", "+callbacks.x={_target_:a.B}", "~seed",
                 "x", "dataset.root=null", "dataset.root='a b'", "lr=choice(1,2)", "training.epochs=[",
                 "a=(", "k='"]  # fmt: skip
    assert quote_for_hydra(unchanged) == unchanged
    assert values("model.name=größe") == ["größe"]
    assert quote_for_hydra(["dataset.root=größe,b=c,d"]) == ["dataset.root='größe','b=c',d"]


@pytest.mark.parametrize("argument", ["--training.epochs=2", "-epochs=2", "--epochs=2", "-seed=1", "---seed=1"])
def test_dashes_before_an_override_are_refused_by_every_command(argument, call, capfd):
    for arguments in ([argument], ["-m", argument], [*TINY, argument]):
        done = call(*arguments)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and argument.lstrip("-") in done.stderr
    assert tune(["lr", argument]) == 2
    from laptime.evaluation.main import main as evaluate

    assert evaluate(["run=latest", argument]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 2
    with pytest.raises(UserError):
        quote_for_hydra([argument])


@pytest.mark.parametrize("flag", [["--cfg=job"], ["--config-dir=."], ["--config-di=."], ["-cd=."]])
def test_flags_with_a_value_are_no_overrides(flag, call):
    assert call(*flag, "--cfg", "job").returncode == 0


@pytest.mark.parametrize("folder", ["lr=0.1 [größe]"])
def test_a_run_goes_on_from_a_checkpoint_with_such_a_path(folder, call, work_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(work_folder))
    assert call(*ONE_EPOCH, f"hydra.run.dir=~/{folder}/first").returncode == 0
    first = Path(folder, "first/checkpoints/last.ckpt")
    done = call(*TINY, "training.epochs=2", f"training.checkpoint={first}", "hydra.run.dir=second")
    assert done.returncode == 0, done.stderr
    assert read_record(Path("second"))["config"]["training"]["checkpoint"] == str(first)
    assert composed("evaluate", quote_for_hydra([f"run={first}"])).run == str(first)


@pytest.mark.parametrize(
    "override",
    [f"{key}=${{hydra:runtime.cwd}}/x" for key in ("dataset.root", "hydra.run.dir", "training.checkpoint")],
)
def test_a_value_of_hydras_own_that_is_not_known_yet_is_refused(override, call):
    done = call(*ONE_EPOCH, override)
    assert done.returncode == 2 and override.partition("=")[0] in done.stderr and "oc.env:PWD" in done.stderr
    assert list(Path().iterdir()) == []


def test_the_folder_where_it_was_typed_can_be_named(call, work_folder, the_run, monkeypatch):
    monkeypatch.setenv("PWD", str(work_folder))
    done = call(*ONE_EPOCH, "dataset.root=${oc.env:PWD}/data")
    assert done.returncode == 0, done.stderr
    assert the_run()[1]["config"]["dataset"]["root"] == f"{work_folder}/data"


def test_relative_paths_mean_the_same_where_hydra_changes_the_folder(call, work_folder):
    assert call(*ONE_EPOCH, "hydra.run.dir=outputs/first").returncode == 0
    first = work_folder / "outputs/first/checkpoints/last.ckpt"
    for number, checkpoint in enumerate(("latest", "outputs/first", str(first))):
        overrides = ["hydra.job.chdir=true", f"training.checkpoint={checkpoint}", "dataset.root=data"]
        done = call(*TINY, "training.epochs=2", *overrides, f"hydra.run.dir=elsewhere/{number}")
        assert done.returncode == 0, done.stderr
        config = read_record(Path(f"elsewhere/{number}"))["config"]
        assert config["training"]["checkpoint"] == str(first) and config["dataset"]["root"] == str(work_folder / "data")
    done = call(*TINY, "hydra.job.chdir=true", "training.checkpoint=first", "hydra.run.dir=wrong")
    assert done.returncode == 2 and not Path("wrong").exists()


@pytest.mark.parametrize(
    ("settings", "is_offered"),
    [
        pytest.param(["hydra.sweep.dir=a b"], True, marks=pytest.mark.soak),
        (["hydra.output_subdir=null"], False),
    ],
)
def test_a_failed_sweep_offers_to_be_resumed_only_where_it_can(settings, is_offered, call):
    fails = ["optimizer.lr=1e30", "training.gradient_clip_norm=null"]
    done = call("-m", *ONE_EPOCH, NO_REPORT, *fails, "seed=1,2", "hydra.sweep.dir=s", *settings)
    offered = [line for line in done.stdout.splitlines() if "sweep.resume=" in line]
    assert done.returncode == 1 and bool(offered) == is_offered
    override = shlex.split(offered[0])[-1] if offered else "sweep.resume=s"
    resumed = call(override, "sweep.dry_run=true")
    assert resumed.returncode == (0 if is_offered else 2), resumed.stderr


@pytest.mark.unit
@pytest.mark.parametrize(
    ("override", "quoted"),
    {
        "scheduler=choice(null,step)": "scheduler=choice(none,step)",
        "scheduler=null,step": "scheduler=none,step",
        "logger=[null]": "logger=[none]",
        "logger=[]": "logger=none",
        "~logger": "logger=none",
        "~scheduler": "~scheduler",
        "logger=[null,csv]": "logger=[null,csv]",  # refused; the message quotes what was typed
        "++scheduler=null": "++scheduler=null",
        "scheduler=null_decay": "scheduler=null_decay",
        "training.early_stopping_patience=null": "training.early_stopping_patience=null",
    }.items(),
)
def test_every_way_to_say_none_is_the_option_none(override, quoted):
    assert quote_for_hydra([override]) == [quoted]


@pytest.mark.parametrize(
    ("override", "words"),
    {
        "logger=[none,csv]": "logger=[none,csv]: none can't be combined with another option. Leave it out.",
        "logger=[null,csv]": "logger=[null,csv]: none can't be combined with another option. Leave it out.",
        "+experiment=null": "+experiment=null: the group exists already. Leave out the +.",
        "+scheduler=step": "+scheduler=step: the group exists already. Leave out the +.",
        "++scheduler=null": "++scheduler=null: ++ sets a key, not the option of a group. Leave out the ++.",
        "debug=fdr": "debug=fdr: the defaults list has no debug. To append it, type +debug=fdr.",
    }.items(),
)
def test_a_group_that_is_chosen_in_a_wrong_way_is_refused_in_one_line(override, words, tmp_path):
    (tmp_path / "debug").mkdir()
    (tmp_path / "debug/fdr.yaml").write_text("# @package _global_\nseed: 3\n")
    with hydra_session(str(tmp_path)) as hydra, pytest.raises(UserError, match=f"^{re.escape(words)}$"):
        compose(hydra, quote_for_hydra([override]))


def test_null_in_a_choice_is_answered_with_a_line_that_hydra_accepts():
    with hydra_session() as hydra:
        with pytest.raises(UserError, match=r"Type training\.gradient_clip_norm=null,1\.0\."):
            plan_runs(hydra, ["training.gradient_clip_norm=choice(null,1.0)"])
        assert len(plan_runs(hydra, ["training.gradient_clip_norm=null,1.0"])) == 2
