"""Overrides are parsed once, with Hydra's grammar, wherever one is asked for its key or value."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from tests.support.configs import changed

from laptime.config import security
from laptime.config.compose import add_search_sweeper, compose, experiment_of, hydra_session
from laptime.config.overrides import as_hydra, find, find_last, first_invalid, key_of, parse
from laptime.config.quoting import quote_for_hydra
from laptime.errors import UserError
from laptime.evaluation.command_line import _quote_for_hydra as for_evaluation
from laptime.record.override_text import split
from laptime.sweeps.labels import shared_overrides, sweep_label
from laptime.sweeps.overrides import split_resume_override
from laptime.sweeps.plan import plan_runs
from laptime.sweeps.rerun_rules import Job
from laptime.sweeps.resume import all_overrides

pytestmark = pytest.mark.unit

UNDERSTOOD = [
    # text, prefix, key, package, text of the value, value
    ("training.epochs=3", "", "training.epochs", None, "3", 3),
    ("+model.x=a", "+", "model.x", None, "a", "a"),
    ("++seed= 3", "++", "seed", None, " 3", 3),
    ("~callbacks.x", "~", "callbacks.x", None, None, None),
    ("~seed=3", "~", "seed", None, "3", 3),
    ("hydra/launcher=joblib", "", "hydra/launcher", None, "joblib", "joblib"),
    ("dataset@other.place=mnist", "", "dataset", "other.place", "mnist", "mnist"),
    ("dataset.root='a=b, c'", "", "dataset.root", None, "'a=b, c'", "a=b, c"),
    ("model.hidden_sizes=[1, 2]", "", "model.hidden_sizes", None, "[1, 2]", [1, 2]),
    ("seed=1,2", "", "seed", None, "1,2", None),
    ("logger=", "", "logger", None, "", ""),
]
REFUSED = [
    ("seed =3", "", "seed ", None, "3"),
    ("'seed'=3", "", "'seed'", None, "3"),
    ("seed=[1", "", "seed", None, "[1"),
    ("dataset.root=a=b", "", "dataset.root", None, "a=b"),
    ("dataset@a@b=x", "", "dataset", "a@b", "x"),
    ("seed", "", "seed", None, None),
    ("seed=" + "[" * 400, "", "seed", None, "[" * 400),
]


@pytest.mark.parametrize(("text", "prefix", "key", "package", "value_text", "value"), UNDERSTOOD)
def test_an_override_has_the_parts_that_hydra_sees(text, prefix, key, package, value_text, value):
    override = parse(text)
    assert (override.prefix, override.key, override.package, override.value_text) == (prefix, key, package, value_text)
    assert override.value == value and override.is_swept == (text == "seed=1,2") and override.error is None
    (by_hydra,) = OverridesParser.create().parse_overrides([text])
    assert override.prefix + override.full_key == by_hydra.get_key_element() and as_hydra([text]) == [by_hydra]
    assert override.is_deletion == by_hydra.is_delete() and override.is_hydra_key == by_hydra.is_hydra_override()
    assert value_text is None or override.with_value(value_text) == text


@pytest.mark.parametrize(("text", "prefix", "key", "package", "value_text"), REFUSED)
def test_of_what_hydra_refuses_the_parts_are_those_around_the_first_equals_sign(text, prefix, key, package, value_text):
    override = parse(text)
    assert (override.prefix, override.key, override.package, override.value_text) == (prefix, key, package, value_text)
    assert override.parsed is None and override.error is not None and override.value is None
    assert first_invalid(["seed=1", text]) == override and first_invalid(["seed=1"]) is None


def test_each_text_is_parsed_once(monkeypatch):
    texts = [f"seed={number}" for number in range(7000, 7010)]
    parsed = [parse(text) for text in texts]
    monkeypatch.setattr(OverridesParser, "parse_overrides", None)
    assert [parse(text) for text in texts] == parsed and key_of(texts[0]) == "seed"
    assert find(texts, "seed") == parsed[0] and find_last(texts, "lr", "seed") == parsed[-1]
    assert find(texts, "lr") is None


def test_a_saved_override_is_split_without_hydra():
    assert split("++dataset@x=a=b") == ("++", "dataset@x", "a=b") and split("~seed") == ("~", "seed", None)


# Regressions from the time when Laptime parsed overrides itself.


def planned(*overrides: str) -> list[list[str]]:
    with hydra_session() as hydra:
        return [run.overrides for run in plan_runs(hydra, overrides)]


def test_seeds_that_are_forced_are_repeats_too():
    """They were not outermost, and a search chose among them."""
    assert planned("model=mlp,cnn", "++seed=1,2") == [
        ["++seed=1", "model=mlp"], ["++seed=1", "model=cnn"], ["++seed=2", "model=mlp"], ["++seed=2", "model=cnn"],
    ]  # fmt: skip
    with pytest.raises(UserError, match="luckiest seed"):
        planned("++seed=1,2", "hydra/sweeper=optuna")


def test_a_forced_value_replaces_the_earlier_one_of_its_key():
    """Both were kept, which made the same run twice."""
    assert planned("seed=1,2", "++seed=3,4") == [["++seed=3"], ["++seed=4"]]


@pytest.mark.parametrize("override", ["hydra/sweeper='laptime'"])
def test_laptimes_own_sweeper_is_no_search_however_it_is_typed(override):
    assert planned("seed=1,2", override) == [["seed=1"], ["seed=2"]]


@pytest.mark.parametrize(
    ("override", "adds"),
    [("search=lr", True), ("search=null", False), ("search= null", False), ("search=NULL", False), ("~search", False)],
)
def test_a_search_takes_its_sweeper(override, adds):
    """`search= null`, with a space, was a search."""
    assert (add_search_sweeper([override]) == [override, "hydra/sweeper=optuna"]) == adds


def test_quoted_experiments_are_named_without_quotes():
    with hydra_session() as hydra:
        names = {experiment_of(compose(hydra, [override])) for override in ("experiment=quick", "experiment='quick'")}
        assert names == {"quick"}
        assert experiment_of(compose(hydra, ["experiment=['quick', weak_scaling]"])) == "quick+weak_scaling"


def test_a_group_of_no_option_is_refused_however_it_is_typed():
    with hydra_session() as hydra:
        for override in ("model=NULL", "model=[cnn, null]", "model=''"):
            with pytest.raises(UserError, match="must be the name of an option"):
                compose(hydra, [override])


def test_a_key_that_is_added_is_the_key_that_is_changed():
    """A regression: a past run with `+x=1` was compared by a key `x` that it did not set."""
    jobs = [Job(["++model.x=2", "seed=1"], {}), Job(["++model.x=2", "seed=2"], {})]

    class Run:
        overrides = ["+model.x=1", "seed=1"]

    assert all_overrides([Run()], jobs)[0] == ["+model.x=1", "seed=1"]


def test_paths_of_the_commands_are_quoted_with_a_plus_as_well():
    assert for_evaluation("+run=a b=c") == "+run='a b=c'"
    assert quote_for_hydra(["+dataset.root=a=b"]) == ["+dataset.root='a=b'"]


def test_a_deletion_resumes_no_sweep():
    assert split_resume_override(["~sweep.resume", "seed=1"]) == (None, ["~sweep.resume", "seed=1"])
    assert split_resume_override(["++sweep.resume='a b'", "seed=1"]) == ("a b", ["seed=1"])


def test_what_is_typed_last_holds_for_security():
    config = changed(sweep={"notify": "true"}, security={"allowed_targets": ["a b"]})
    security.check(config, ["sweep.notify=no", "++sweep.notify='true'", "security.allowed_targets= ['a b']"])


def test_labels_name_groups_with_their_package_and_deletions():
    jobs = [["dataset@other=mnist", "~callbacks.x", "++strategy.world_size=2"], []]
    assert sweep_label(jobs[0], shared_overrides(jobs)) == "dataset@other=mnist ~callbacks.x= ws=2".replace(
        "~callbacks.x", "x"
    )


@pytest.mark.parametrize("text", ["", " ", "=", "=0.1.2", "=x", "+=1", "~=1", "~", "++", "@=1"])
def test_an_override_without_a_key_is_refused_by_its_text(text):
    with hydra_session() as hydra, pytest.raises(UserError, match=r"^'.*': has no key\. ") as caught:
        compose(hydra, ["seed=1", text])
    assert repr(text) in str(caught.value)
