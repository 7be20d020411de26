"""Open config groups: arguments checked against the signature of what `_target_` names, then built."""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Optional, Union

import pytest

from laptime.config import targets
from laptime.errors import UserError


class Layer:
    def __init__(self, size: int, dropout: float = 0.0, activation: str = "relu") -> None:
        if dropout >= 1:
            raise ValueError(f"dropout={dropout}: must be below 1.")
        if size > 100:
            raise ValueError("too large for the machine\nsecond line")
        if size == 13:
            raise TypeError
        self.arguments = (size, dropout, activation)

    def __repr__(self) -> str:
        return "a layer"


class Open:
    def __init__(self, size: int, **rest: Any) -> None:
        self.size, self.rest = size, rest


class PositionalOnly:
    def __init__(self, first: int = 1, /) -> None: ...


class Takes:
    """Whatever it is given."""

    def __init__(self, *positional: Any, value: Any = None, layer: Layer | None = None) -> None:
        self.positional, self.value, self.layer = positional, value, layer


def fails_as_a_bug() -> None:
    raise ZeroDivisionError


NOT_CALLABLE = 3


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """This module under a name that `_target_` can name, whatever pytest has imported it as."""
    monkeypatch.setitem(sys.modules, "targets_of_the_test", sys.modules[__name__])


def node(name="Layer", **arguments):
    return {"_target_": f"targets_of_the_test.{name}", **arguments}


def test_fitting_arguments_give_the_class():
    assert targets.check("model", node(size=3, dropout=0.5, activation="tanh")) is Layer


def test_build_makes_the_object():
    assert targets.build("model", node(size=3, dropout=0.5)).arguments == (3, 0.5, "relu")


def test_build_passes_what_is_given_besides():
    assert targets.build("model", node(dropout=0.5), size=7).arguments == (7, 0.5, "relu")


def test_build_leaves_out_what_the_target_does_not_take():
    assert targets.build("model", node(size=3), input_shape=(1, 2, 3)).arguments == (3, 0.0, "relu")


def test_target_that_takes_any_keyword_gets_all():
    built = targets.build("model", node("Open", size=3, other="x"), given=1)
    assert (built.size, built.rest) == (3, {"other": "x", "given": 1})


def test_unknown_argument_is_refused_with_a_suggestion_and_the_known_ones():
    with pytest.raises(UserError) as caught:
        targets.check("model", node(size=3, droput=0.5))
    message = str(caught.value)
    assert message.startswith("model.droput=0.5: model._target_=") and "Layer has no such argument." in message
    assert "Did you mean model.dropout?" in message
    assert message.endswith("Known: size, dropout, activation.")


def test_unknown_argument_like_no_other_is_refused_without_a_suggestion():
    with pytest.raises(UserError, match="Known: size") as caught:
        targets.check("model", node(size=3, zzz=1))
    assert "Did you mean" not in str(caught.value)


def test_argument_that_laptime_gives_itself_is_no_key():
    with pytest.raises(UserError, match=r"^model\.size=3: \S*Layer has no such argument") as caught:
        targets.check("model", node(size=3), frozenset({"size"}))
    assert "Known: dropout, activation." in str(caught.value)


def test_missing_required_argument_is_named_with_what_to_do():
    message = r"^model\.size: has no value, but model\._target_=\S*Layer needs one\..*\+model\.size="
    with pytest.raises(UserError, match=message):
        targets.check("model", node(dropout=0.5))


def test_the_message_about_a_missing_argument_names_those_that_laptime_passes():
    with pytest.raises(
        UserError, match=r"model\.size: .*, or rename the argument to input_shape or num_classes, which"
    ):
        targets.check("model", node("Layer"), frozenset({"input_shape", "num_classes"}))
    with pytest.raises(UserError, match=r"\+model\.size=\.\.\.$"):
        targets.check("model", node("Layer"), frozenset({"dropout"}))


def test_required_argument_that_laptime_gives_is_not_missing():
    assert targets.check("model", node(), frozenset({"size"})) is Layer


def test_ill_typed_argument_is_named_with_its_value_and_what_it_must_be():
    with pytest.raises(UserError, match=r"^model\.dropout=much: must be a number\.$"):
        targets.check("model", node(size=3, dropout="much"))


FITS = [
    (int, 3, "3"),
    (int, -1, 1.0),
    (int, 0, True),
    (int, 0, None),
    (float, 0.5, "0.5"),
    (float, 1, True),
    (float, float("inf"), None),
    (float, 0, [0.0]),
    (bool, True, 1),
    (bool, False, "false"),
    (bool, False, None),
    (str, "a", 1),
    (str, "", None),
    (str, "true", True),
    (type(None), None, ""),
    (Literal["memory", "workers"], "workers", "disk"),
    (Literal["memory", None], None, 0),
    (Optional[int], None, "none"),  # noqa: UP045
    (Optional[int], 3, 3.5),  # noqa: UP045
    (int | None, None, "none"),
    (Union[int, str], "a", 1.5),  # noqa: UP007
    (int | str, 1, None),
    (float | Literal["auto"], "auto", "none"),
    (float | Literal["auto"], 1, None),
    (list[int], [1, 2], [1, "2"]),
    (list[int], [], 1),
    (list[float], [1, 2.5], "1, 2"),
    (list[str], ["a"], "a"),
    (Sequence[int], [1, 2], [True]),
    (Iterable[str], ["a"], [1]),
    (tuple[int, ...], [1, 2, 3], [1, 2, 3.5]),
    (tuple[float, float], [0.9, 1], [0.9]),
    (tuple[float, float], [0.9, 0.999], [0.9, 0.99, 0.999]),
    (tuple[int, str], [1, "a"], ["a", 1]),
    (list[int] | None, None, 3),
    (list[list[int]], [[1], []], [1]),
    (Path | str, "a", 1),
    (Layer, Layer(1), 3),
    (Layer | None, None, "a layer"),
]


@pytest.mark.parametrize(("annotation", "accepted", "refused"), FITS, ids=str)
def test_value_of_another_type_is_refused_and_one_that_fits_is_accepted(annotation, accepted, refused, monkeypatch):
    def take(value):
        return value

    take.__annotations__["value"] = annotation
    monkeypatch.setitem(globals(), "take", take)
    assert targets.build("group", node("take", value=accepted)) is accepted
    with pytest.raises(UserError, match=r"^group\.value="):
        targets.check("group", node("take", value=refused))


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Any, 3),
        (Any, None),
        (Any, [1]),
        (Any | None, "a"),
        (list, [1, "a"]),
        (tuple, [1, "a"]),
        (Sequence, [1]),
        (dict, {"a": 1}),
        (dict[str, int], {"a": 1}),
        (object, 3),
        (Callable[[int], int], "a"),
    ],
    ids=str,
)
def test_value_is_taken_where_the_annotation_says_nothing_against_it(annotation, value, monkeypatch):
    def take(value):
        return value

    take.__annotations__["value"] = annotation
    monkeypatch.setitem(globals(), "take", take)
    assert targets.build("group", node("take", value=value)) is value


def test_argument_without_annotation_takes_everything(monkeypatch):
    monkeypatch.setitem(globals(), "take", lambda value: value)
    for value in (None, 1, "a", [1], {"a": 1}):
        assert targets.build("group", node("take", value=value)) is value


def test_refusal_says_what_is_wanted_in_words(monkeypatch):
    def take(value: list[int] | Literal["auto"] | None) -> None: ...

    monkeypatch.setitem(globals(), "take", take)
    with pytest.raises(UserError, match=r"must be a list, each a whole number or auto or null\.$"):
        targets.check("group", node("take", value=1.5))


@pytest.mark.parametrize(
    "path",
    ["no_such_package.Thing", "laptime.models.mlp.MPL", "laptime.no_such_module.Thing", "Thing", "..", ""],
)
def test_target_that_cannot_be_imported_is_refused_by_name(path):
    with pytest.raises(UserError) as caught:
        targets.check("model", {"_target_": path})
    assert str(caught.value).startswith(f"model._target_={path}: can't be imported")
    assert "\n" not in str(caught.value)


def test_module_that_fails_while_importing_is_refused_with_the_reason(tmp_path, monkeypatch):
    (tmp_path / "module_that_fails.py").write_text("raise RuntimeError('the driver is absent')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="can't be imported"):
        targets.check("model", {"_target_": "module_that_fails.Thing"})


@pytest.mark.parametrize("name", ["targets_of_the_test.NOT_CALLABLE", "os.path"])
def test_target_that_cannot_be_called_is_refused(name):
    with pytest.raises(UserError, match="must be a class or function"):
        targets.check("model", {"_target_": name})


@pytest.mark.parametrize("group", [{}, {"_target_": None}, {"_target_": 3}])
def test_group_without_a_target_is_refused(group):
    with pytest.raises(UserError, match=r"^model\._target_=.*must name a class"):
        targets.check("model", group)


def test_refused_value_is_named_by_its_key():
    with pytest.raises(UserError, match=r"^model\.dropout=1\.5: must be below 1\.$") as caught:
        targets.build("model", node(size=3, dropout=1.5))
    assert isinstance(caught.value.__cause__, ValueError)


def test_refusal_that_names_no_key_is_told_in_one_line_with_the_class():
    with pytest.raises(UserError, match=r"^model=Layer\(size=101\): too large for the machine$"):
        targets.build("model", node(size=101))


def test_refusal_without_a_word_still_says_something():
    with pytest.raises(UserError, match=r"^model=Layer\(size=13\): TypeError$"):
        targets.build("model", node(size=13))


def test_failure_that_is_no_refusal_keeps_its_traceback(monkeypatch):
    def take() -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(globals(), "take", take)
    with pytest.raises(ZeroDivisionError):
        targets.build("model", node("take"))


def test_positional_only_argument_is_not_offered_as_a_key():
    with pytest.raises(UserError):
        targets.build("model", node("PositionalOnly", first=2))


# Objects within objects.


def made(value: Any) -> Any:
    return targets.build("model", node("Takes", value=value)).value


def test_mapping_with_a_target_is_made_wherever_it_stands():
    layer = node(size=3)
    built = made({"a": layer, "b": [1, {"c": layer}], "d": {"e": 1}})
    assert isinstance(built["a"], Layer) and isinstance(built["b"][1]["c"], Layer)
    assert type(built) is dict and type(built["b"]) is list
    assert built["b"][0] == 1 and built["d"] == {"e": 1}


def test_objects_are_made_within_made_objects():
    built = made(node("Takes", value=[node("Takes", value=node(size=3))]))
    assert isinstance(built.value[0].value, Layer)


def test_value_without_a_target_stays_the_same_object():
    value = {"a": [1, {"b": None}]}
    assert made(value) is value


def test_partial_is_called_later_with_the_rest():
    later = made(node(_partial_=True, dropout=0.5))
    assert later(size=3).arguments == (3, 0.5, "relu")


def test_positional_arguments_are_passed():
    assert made(node(_args_=[3, 0.5])).arguments == (3, 0.5, "relu")
    assert made(node("Takes", _args_=[node(size=1), 2])).positional[1] == 2
    assert isinstance(made(node("Takes", _args_=[node(size=1)])).positional[0], Layer)


def test_arguments_of_nested_objects_are_plain_unless_they_are_converted_otherwise():
    assert type(made(node("Takes", value=[1])).value) is list
    assert type(made(node("Takes", value={"a": 1})).value) is dict
    assert type(made(node("Takes", value=[1], _convert_="none")).value).__name__ == "ListConfig"


def test_not_recursive_leaves_what_is_within_as_it_is():
    inner = node(size=3)
    assert dict(made(node("Takes", value=inner, _recursive_=False)).value) == inner
    # Whoever takes it as it is knows what to do with what would be a mistake here.
    assert dict(made(node("Takes", value=node(no_such=3), _recursive_=False)).value) == node(no_such=3)


def test_object_is_taken_where_a_class_is_wanted_and_a_plain_mapping_is_not():
    assert isinstance(targets.build("model", node("Takes", layer=node(size=1))).layer, Layer)
    with pytest.raises(UserError, match=r"^model\.layer="):
        targets.check("model", node("Takes", layer={"size": 1}))


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (node(size=3, droput=1), "model.value.droput=1"),
        (node(), "model.value.size"),
        (node(size="a"), "model.value.size=a"),
        ([0, node(size="a")], "model.value[1].size=a"),
        ({"b": node(size="a")}, "model.value.b.size=a"),
        (node("Takes", value=node("Takes", value=[node(size="a")])), "model.value.value.value[0].size=a"),
        (node(_args_=["a"]), "model.value._args_[0]=a"),
        (node(_args_=[1, 0.5, "a", 4]), "model.value._args_=[1, 0.5, 'a', 4]"),
        (node(_args_=[1], size=2), "model.value.size=2"),
        (node("Missing"), "model.value._target_=targets_of_the_test.Missing"),
        ({"_target_": 3}, "model.value._target_=3"),
        (node(size=1, _partial_="yes"), "model.value._partial_=yes"),
        (node(size=1, _recursive_=None), "model.value._recursive_=null"),
        (node(size=1, _convert_="everything"), "model.value._convert_=everything"),
        (node(size=1, _args_={"a": 1}), "model.value._args_="),
        ({"_partial_": True, "size": 1}, "model.value._partial_=true"),
    ],
)
def test_mistake_in_a_nested_object_is_refused_by_its_key_while_it_is_checked(value, key):
    with pytest.raises(UserError) as caught:
        targets.check("model", node("Takes", value=value))
    assert str(caught.value).startswith(key)


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (node(size=101), "model.value: "),
        ([node(size=1), node(size=101)], "model.value[1]: "),
        (node("Takes", value=node(size=101)), "model.value.value: "),
        (node("Takes", _args_=[node(size=101)]), "model.value._args_"),
        (node(size=1, activation="${oc.env:HOME}"), "model.value.activation="),
        (node("Takes", value=["${oc.create:{_target_:os.getcwd}}"]), "model.value.value[0]="),
    ],
)
def test_nested_object_that_is_refused_gets_one_line_with_its_key(value, key):
    with pytest.raises(UserError) as caught:
        targets.build("model", node("Takes", value=value))
    assert str(caught.value).startswith(key) and len(str(caught.value).splitlines()) == 1


def test_bug_in_a_nested_object_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        made(node("fails_as_a_bug"))


@pytest.mark.parametrize("key", ["_partial_", "_recursive_", "_args_", "_convert_"])
def test_object_that_laptime_makes_takes_no_special_key(key):
    value = {"_args_": [1], "_convert_": "all"}.get(key, True)
    with pytest.raises(UserError, match=rf"^model\.{key}="):
        targets.check("model", node("Open", size=1, **{key: value}))


def test_class_of_another_kind_is_refused_before_it_is_made():
    with pytest.raises(UserError, match="must create a Open, but creates a Layer"):
        targets.check("model", node(size=1), kind=Open)
    assert targets.check("model", node(size=1), kind=Layer) is Layer
