"""Variables, parameters, functions and constants are named after their content, not after their grammar."""

import ast
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.unit

FORBIDDEN_NAMES = {"found", "own", "there", "each", "known", "unheeded", "unlike", "alike", "typed"}
FILES = sorted(path for folder in ("src", "benchmarks", "tests", "docs") for path in (ROOT / folder).rglob("*.py"))


def names(source: str) -> Iterator[tuple[int, str]]:
    """The line and the name of everything that a file names itself."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.arg(arg=name):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield node.lineno, name


def is_refused(name: str) -> bool:
    return name.strip("_") in FORBIDDEN_NAMES or name.lstrip("_").startswith("OF_")


def test_names_say_what_a_thing_is():
    refused = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in FILES
        for line, name in names(path.read_text("utf-8"))
        if is_refused(name)
    ]
    assert refused == []


@pytest.mark.parametrize(
    "source",
    ["found = 1", "for each in x: pass", "def f(typed): pass", "_OF_DDP = ()", "def found(): pass", "[0 for own in x]"],
)
def test_a_name_of_grammar_is_refused(source):
    assert [name for _, name in names(source) if is_refused(name)]


def test_other_names_are_accepted():
    assert not [name for _, name in names("known_keys = owner = row.each") if is_refused(name)]
